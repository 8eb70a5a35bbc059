"""Solving over a horizon, by a bare block."""

import pytest
import torch

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn.block import Block

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
gradient_modes = pytest.mark.parametrize("gradient", ["autograd", "adjoint"])


def solve(horizon, solver, field, y0, t_eval=None, *, t_start=None):
    """The solution that a block with this horizon and solver gets from a field."""
    if t_start is not None:
        field = WarpedField(field, TimeWarp(horizon.t0, t_start, 1.0))
    block = Block()
    block.set_up(field, solver, None, horizon)
    return block.solve(field, y0, horizon.times(y0) if t_eval is None else t_eval)


def gradients(ys, *inputs):
    """Gradients of a sum of ``ys`` in which every entry has a weight of its own."""
    weights = torch.linspace(0.5, 1.0, ys.numel(), dtype=ys.dtype).reshape_as(ys)
    return torch.autograd.grad((ys * weights).sum(), inputs)


def check_solution(field, y0, found, expected, close=1e-7):
    """Compare states, and their gradients in the initial state and the parameters."""
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    found, expected = (gradients(ys, y0, *field.parameters()) for ys in (found, expected))
    torch.testing.assert_close(found, expected, rtol=10.0 * close, atol=10.0 * close)
