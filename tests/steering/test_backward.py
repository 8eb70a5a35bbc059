"""What a backward pass evaluates again has the end time of its forward pass."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning.horizon.base import moved
from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.steering.attach import AttachedHorizon
from tests.helpers.attaching import TIGHT, attached, both_calls
from tests.helpers.problems import CosineField, initial_state, times


def gradient_of(field, y0, *ends):
    """Of the sum of solves to several ends, in closed form."""
    return torch.autograd.grad(sum(field.exact(y0, 0.0, end).sum() for end in ends), field.a)[0]


@pytest.mark.parametrize("then", ["reset", "perturb", "nominal forward", "no_grad", "eval"])
@both_calls
def test_a_backward_pass_has_the_end_time_of_its_forward_pass(call, then):
    field, y0 = CosineField(), initial_state()
    horizon = attached(field)
    horizon.perturb(FixedOffset(0.4), root=field)
    y = call(field, y0, times(0.0, 1.0), **TIGHT)[-1]
    if then == "eval":
        field.eval()
        call(field, y0, times(0.0, 1.0))
    elif then == "perturb":
        horizon.perturb(FixedOffset(0.2))
    else:
        horizon.reset()
    with torch.set_grad_enabled(then != "no_grad"):
        if then in ("nominal forward", "no_grad"):
            call(field, y0, times(0.0, 1.0))
    for _ in range(2):  # and again in a later step
        (found,) = torch.autograd.grad(y.sum(), field.a, retain_graph=True)
        torch.testing.assert_close(found, gradient_of(field, y0, 1.4), rtol=1e-6, atol=1e-6)
        horizon.perturb(FixedOffset(-0.3))


@both_calls
@pytest.mark.parametrize("offsets", [(0.4, -0.3), (None, 0.4), (0.4, None)])
def test_one_backward_pass_over_several_draws(call, offsets):
    field, y0 = CosineField(), initial_state()
    horizon, loss = attached(field), 0.0
    for offset in offsets:
        horizon.reset() if offset is None else horizon.perturb(FixedOffset(offset))
        loss = loss + call(field, y0, times(0.0, 1.0), **TIGHT)[-1].sum()
    (found,) = torch.autograd.grad(loss, field.a)
    expected = gradient_of(field, y0, *(1.0 + (offset or 0.0) for offset in offsets))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@both_calls
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("after_the_step", [False, True])
def test_a_checkpoint_repeats_the_solve_of_its_forward_pass_or_refuses(
    call, use_reentrant, after_the_step
):
    field, y0 = CosineField(), initial_state().requires_grad_()
    horizon = attached(field, 0.4)

    def loss(y0):
        return call(field, y0, times(0.0, 1.0), **TIGHT)[-1].sum()

    checkpointed = checkpoint(loss, y0, use_reentrant=use_reentrant)
    if after_the_step:
        horizon.reset()
    if after_the_step and use_reentrant:
        with pytest.raises(RuntimeError, match=r"re-entrant checkpoint .* use_reentrant=False"):
            checkpointed.backward()
    else:
        checkpointed.backward()
        expected = gradient_of(field, y0, 1.4)
        torch.testing.assert_close(field.a.grad, expected, rtol=1e-6, atol=1e-6)


@both_calls
@pytest.mark.parametrize("offset", [None, 0.2])
def test_a_checkpoint_repeats_a_context_inside_it(call, offset):
    field, y0 = CosineField(), initial_state()
    horizon = attached(field, 0.4)

    def solve_twice(y0):
        with moved([horizon], None if offset is None else FixedOffset(offset)):
            first = call(field, y0, times(0.0, 1.0), **TIGHT)[-1].sum()
        return first + call(field, y0, times(0.0, 1.0), **TIGHT)[-1].sum()

    loss = checkpoint(solve_twice, y0, use_reentrant=False)
    horizon.reset()
    (found,) = torch.autograd.grad(loss, field.a)
    expected = gradient_of(field, y0, 1.0 + (offset or 0.0), 1.4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_forward_pass_too_long_ago_is_refused():
    field, y0 = CosineField(), initial_state()
    horizon = attached(field, 0.4)
    y = odeint_adjoint(field, y0, times(0.0, 1.0))[-1]
    for _ in range(1001):
        horizon.reset()
    with pytest.raises(RuntimeError, match=r"end time is no longer known. Call backward earlier"):
        y.sum().backward()


def test_with_b_zero_an_adjoint_may_come_whenever_it_likes():
    field, y0 = CosineField(), initial_state().requires_grad_()
    horizon = attached(field)
    horizon.perturb(EndTimeDraw(0.0))
    y = odeint_adjoint(field, y0, times(0.0, 1.0))[-1]
    horizon.reset()
    y.sum().backward()
    assert y0.grad.isfinite().all()


@both_calls
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_forward_pass_in_eval_mode_stays_nominal_in_its_backward_pass(call, recomputed):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = CosineField()

        def forward(self, y0):
            solve = partial(call, self.field, t=times(0.0, 1.0), **TIGHT)
            return checkpoint(solve, y0, use_reentrant=False) if recomputed else solve(y0)

    model, y0 = Model(), initial_state()
    field = model.field
    horizon = AttachedHorizon(field, "field", (0.0, 1.0), around={"": model})
    horizon.perturb(FixedOffset(0.4), root=model)
    losses = {
        1.0: model.eval()(y0)[-1].sum(),
        1.4: model.train()(y0)[-1].sum(),
    }
    for end, loss in losses.items():
        (found,) = torch.autograd.grad(loss, field.a)
        torch.testing.assert_close(found, gradient_of(field, y0, end), rtol=1e-6, atol=1e-6)


def test_a_backward_pass_of_an_earlier_step_leaves_the_end_time_in_force():
    field, y0 = CosineField(), initial_state()
    horizon = attached(field, 0.4)
    before = odeint_adjoint(field, y0, times(0.0, 1.0))[-1]
    horizon.perturb(FixedOffset(-0.3))
    odeint(field, y0, times(0.0, 1.0))
    before.sum().backward()
    assert horizon.in_force() == {"end_time": pytest.approx(0.7)}
