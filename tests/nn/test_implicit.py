"""Blocks on the implicit solver, with and without STEER."""

import pytest
import torch
from torch.autograd import forward_ad

from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import (
    CNF,
    CompiledField,
    ConcatSquashField,
    LatentDecoder,
    MLPField,
    ODEBlock,
)
from steer_lightning.nn import compiled as compiled_field
from steer_lightning.solvers import AdaptiveSolver, RosenbrockSolver
from tests.helpers.models import lively, seeded
from tests.helpers.problems import initial_state, times

EXPLICIT = AdaptiveSolver("dopri5", 1e-10, 1e-10, None)
IMPLICIT = RosenbrockSolver("rodas5p", 1e-8, 1e-8)
X = torch.ones(3, 2)
OWN_TIMES = torch.stack([times(0.0, 0.3, 1.0), times(0.5, 0.9, 0.9), times(0.0, 0.0, 0.0)])


def with_gradients(make, call, solver, scope):
    """What a block gives under a draw, and all of its gradients."""
    block = lively(seeded(make, solver).double())
    if scope is not None:
        block.horizon.perturb(EndTimeDraw(0.3, key=1, scope=scope))
    x = initial_state().requires_grad_()
    y = call(block, x)
    weights = torch.linspace(0.5, 1.0, y.numel()).double().view_as(y)
    inputs = [x, *(p for p in block.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad((weights * y).sum(), inputs)
    return block, y, gradients


CASES = {
    "block": (
        lambda solver: ODEBlock(MLPField(2, (6,)), solver, (0.0, 1.0)),
        lambda block, x: block(x),
    ),
    "block, back in time": (
        lambda solver: ODEBlock(MLPField(2, (6,)), solver, (1.0, 0.0)),
        lambda block, x: block(x, times(1.0, 0.6, 0.0)),
    ),
    "block, many times": (
        lambda solver: ODEBlock(MLPField(2, (6,)), solver, horizon=GridHorizon()),
        lambda block, x: block(x, times(0.0, 0.4, 1.0)),
    ),
    "flow": (
        lambda solver: CNF(ConcatSquashField(2, (6,)), (2,), solver, learn_t1=True),
        lambda flow, x: flow.log_prob(x),
    ),
    "flow, of any field": (
        lambda solver: CNF(MLPField(2, (6,)), (2,), solver, data_at="t0"),
        lambda flow, x: flow.log_prob(x),
    ),
    "decoder": (
        lambda solver: LatentDecoder(MLPField(2, (6,), time_dependent=False), solver),
        lambda decoder, x: decoder(x[None], OWN_TIMES, torch.tensor([3, 2, 1])),
    ),
}


@pytest.mark.parametrize("scope", [None, "batch", "sample"])
@pytest.mark.parametrize("case", CASES)
def test_blocks_and_their_gradients_are_those_of_the_explicit_solver(case, scope):
    make, call = CASES[case]
    block, *found = with_gradients(make, call, IMPLICIT, scope)
    _, *expected = with_gradients(make, call, EXPLICIT, scope)
    assert block.stats.jacobians > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_works_in_float32_in_inference_mode_and_under_a_transform_of_torch_func():
    block, x = ODEBlock(MLPField(2, (6,)), RosenbrockSolver()), X.clone().requires_grad_()
    expected = block(x)
    with torch.inference_mode():
        assert torch.equal(block(X), expected)
    y, pull = torch.func.vjp(block, x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(pull(torch.ones_like(y))[0], gradient)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(block(forward_ad.make_dual(X, X))).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(block, (X,), (X,))[1])


def test_a_compiled_field_is_differentiated_as_it_is(monkeypatch):
    monkeypatch.setattr(compiled_field, "compiled", lambda function: function)
    found = []
    for wrap in (CompiledField, lambda field: field):
        block = ODEBlock(wrap(seeded(MLPField, 2, (6,))), RosenbrockSolver())
        found.append(block(X))
    assert torch.equal(*found)

    def refused(function):
        raise AssertionError("a field was compiled under a transform")

    monkeypatch.setattr(compiled_field, "compiled", refused)
    field = CompiledField(MLPField(2, (6,)))
    torch.func.vjp(lambda y: field(torch.tensor(0.0), y), X)
