"""Solving over a horizon, by a bare block."""

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn.integrate import Block


def solve(horizon, solver, field, y0, t_eval=None, *, t_start=None):
    """The solution that a block with this horizon and solver gets from a field."""
    if t_start is not None:
        field = WarpedField(field, TimeWarp(horizon.t0, t_start, 1.0))
    block = Block()
    block.set_up(field, solver, None, horizon)
    return block.solve(field, y0, horizon.times(y0) if t_eval is None else t_eval)
