"""A tolerance that TF32 cannot hold is warned of, where it matters, once."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from steer_lightning.horizon.base import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn import CompiledField, ConvField, ConvFlowField, MLPField
from steer_lightning.nn.flows.divergence import DivergenceField
from steer_lightning.solvers import (
    AdaptiveSolver,
    TorchdiffeqSolver,
    error_controlled,
    tf32,
    torchdiffeq,
)
from steer_lightning.solvers.tf32 import TF32_ROUNDING, warn_of_rounding

WARP = TimeWarp(0.0, 0.0, torch.tensor(1.1))


@pytest.fixture(autouse=True)
def backends():
    """Full float32, and nothing said yet; afterwards everything as it was."""
    both = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in both]
    for backend in both:
        backend.fp32_precision = "ieee"
    tf32._warn_once.cache_clear()
    yield
    for backend, precision in zip(both, before, strict=True):
        backend.fp32_precision = precision
    tf32._warn_once.cache_clear()


def on_gpu(dtype=torch.float32):
    """A tensor that says it is on a GPU, and has no values."""
    with FakeTensorMode():
        return torch.empty(2, 2, device="cuda", dtype=dtype)


def said(*arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_rounding(*arguments)
    return [str(warning.message) for warning in caught]


def test_the_rounding_is_that_of_ten_bits_of_mantissa():
    # Between 1 and 2, numbers of ten bits are 2^-10 apart; the worst is half way after 1.
    assert pytest.approx((0.5 * 2**-10) / (1 + 0.5 * 2**-10), rel=1e-3) == TF32_ROUNDING


@pytest.mark.parametrize(
    ("field", "matmul", "conv", "rounded"),
    [
        (ConvField(1, 4), "tf32", "tf32", "matrix products and convolutions"),
        (MLPField(2), "tf32", "tf32", "matrix products"),
        (ConvField(1, 4), "tf32", "ieee", "matrix products"),
        (ConvField(1, 4), "none", "tf32", "convolutions"),
        (WarpedField(ConvField(1, 4), WARP), "none", "tf32", "convolutions"),
        (CompiledField(ConvField(1, 4)), "none", "tf32", "convolutions"),
        (DivergenceField(ConvFlowField(1, (3,)), None), "none", "tf32", "convolutions"),
        (ConvField(1, 4), "none", "none", None),
        (MLPField(2), "ieee", "tf32", None),  # torch's default, and a field without any
        (lambda t, y: y, "ieee", "tf32", None),
    ],
)
def test_the_message_names_what_rounds_and_what_to_do(field, matmul, conv, rounded):
    torch.backends.cuda.matmul.fp32_precision = matmul
    torch.backends.cudnn.conv.fp32_precision = conv
    found = said(field, on_gpu(), 1e-5)
    assert len(found) == (rounded is not None)
    if rounded is not None:
        assert f"as rtol = 1e-05 asks for, but its {rounded} round to TF32" in found[0]
        assert "up to 0.0005" in found[0]
        assert "--tf32 false" in found[0]
        assert "set rtol to 0.001" in found[0]


def test_it_is_said_once_and_only_of_a_gpus_tight_float32_solves(monkeypatch):
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    field = ConvField(1, 4)
    assert said(field, torch.zeros(2, 2), 1e-5) == []
    assert len(said(field, (on_gpu(), on_gpu()), 1e-5)) == 1
    assert said(field, on_gpu(), 1e-5) == []
    assert len(said(field, on_gpu(), 1e-6)) == 1
    assert said(field, on_gpu(torch.float64), 1e-7) == []
    assert said(field, on_gpu(), 1e-3) == []
    torch.backends.cuda.matmul.allow_tf32 = True  # the older switch
    assert "its matrix products round" in said(MLPField(2), on_gpu(), 1e-5)[0]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    assert "TF32" not in said(field, on_gpu(), 1e-7)[0]


def test_autocast_is_warned_of_once():
    field, y0 = MLPField(2), torch.zeros(2, 2)
    assert said(field, y0, 1e-5) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast rounds to torch.bfloat16, with a" in said(field, y0, 1e-5)[0]
        assert said(field, y0, 1e-5) == []
        assert said(field, y0, 1e-2) == []


@pytest.mark.parametrize(
    ("solver", "looks"),
    [
        (TorchdiffeqSolver(rtol=1e-6), True),
        (TorchdiffeqSolver("bosh3", rtol=1e-6, gradient="adjoint"), True),
        (TorchdiffeqSolver("rk4"), False),
        (AdaptiveSolver(rtol=1e-6), True),
    ],
    ids=repr,
)
def test_solvers_that_adapt_their_steps_look(solver, looks, monkeypatch):
    asked = []
    for place in (error_controlled, torchdiffeq):
        monkeypatch.setattr(place, "warn_of_rounding", lambda f, y0, rtol: asked.append((f, rtol)))
    field = nn.Identity()
    field.forward = lambda t, y: -y
    solver.solve(field, torch.ones(2, 2), torch.tensor([0.0, 1.0]))
    assert asked == ([(field, 1e-6)] if looks else [])
