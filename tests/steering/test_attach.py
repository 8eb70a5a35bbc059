"""Hooks on somebody else's vector field, against a solve to T written by hand."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchdiffeq import odeint

from steer_lightning import steer
from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from tests.helpers.attaching import TIGHT, attached, both_calls
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, OscillatorField, initial_state, times


@both_calls
@pytest.mark.parametrize("offset", [-0.4, 0.4])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.5, 2.0), (2.0, 0.5)])
@pytest.mark.parametrize("reverse", [False, True])
def test_values_and_gradients_are_those_of_the_moved_span(call, offset, span, reverse):
    field, y0 = CosineField(), initial_state().requires_grad_()
    nominal, moved = times(*span), times(span[0], span[1] + offset)
    if reverse:
        nominal, moved = nominal.flip(0), moved.flip(0)
    expected = odeint(field, y0, moved, **TIGHT)[-1]
    expected_grads = torch.autograd.grad(expected.square().sum(), (y0, field.a))
    attached(field, offset, *span)
    found = call(field, y0, nominal, **TIGHT)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    grads = torch.autograd.grad(found.square().sum(), (y0, field.a))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-6, atol=1e-6)


@both_calls
@pytest.mark.parametrize("draw", [None, EndTimeDraw(0.0)])
def test_without_an_offset_nothing_changes_not_even_a_bit(call, draw):
    field, y0 = CosineField(), initial_state().requires_grad_()
    results = []
    for hooked in (False, True):
        if hooked:
            horizon = attached(field)
            if draw is not None:
                horizon.perturb(draw)
        y = call(field, y0, times(0.0, 1.0))[-1]
        results.append((y.detach(), *torch.autograd.grad(y.sum(), (y0, field.a))))
    for plain, hooked in zip(*results, strict=True):
        assert torch.equal(plain, hooked)


def test_the_fields_own_code_sees_actual_times_and_the_solver_keeps_its_options():
    field, options = RecordingField(CosineField()), {"step_size": 1.0}
    attached(field, 0.5)
    ts = times(0.0, 0.5, 1.0)
    y = odeint(field, initial_state(), ts, method="midpoint", options=options)[-1]
    assert [float(t) for t in field.times] == [0.0, 0.75]
    middle = initial_state() * (1 + 0.75 * 0.9)  # one midpoint step of length 1.5, by hand
    expected = initial_state() + 1.5 * 0.9 * torch.cos(times(0.75)) * middle
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=0)


class Pair(NamedTuple):
    x: torch.Tensor
    v: torch.Tensor


@pytest.mark.parametrize("kind", [tuple, list, Pair], ids=lambda kind: kind.__name__)
def test_every_part_of_what_the_field_returns_is_scaled(kind):
    class Field(OscillatorField):
        def forward(self, t, y):
            dy = super().forward(t, y)
            return Pair(*dy) if kind is Pair else kind(dy)

    field = Field()
    y0 = (initial_state(), initial_state())
    attached(field, 0.3)
    out = field(torch.tensor(0.0), y0)
    assert type(out) is kind
    torch.testing.assert_close(out[0], 1.3 * y0[1])
    if kind is not list:
        xs, vs = odeint(field, y0, times(0.0, 1.0), **TIGHT)
        for part, expected in zip((xs, vs), field.exact(y0, 0.0, 1.3), strict=True):
            torch.testing.assert_close(part[-1], expected, rtol=1e-7, atol=1e-7)


def test_further_arguments_pass_through_and_time_may_be_a_keyword():
    class Field(nn.Module):
        def forward(self, t, y, context=None, *, gain=1.0):
            return t * y + context * gain

    field = Field()
    attached(field, 0.5)
    t, y, context = times(1.0), times(2.0), times(3.0)
    expected = 1.5 * (1.5 * y + context * 4.0)
    torch.testing.assert_close(field(t, y, context, gain=4.0), expected)
    torch.testing.assert_close(field(t=t, y=y, context=context, gain=4.0), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtypes_of_time_and_derivative_are_kept(dtype):
    class Field(nn.Module):
        def forward(self, t, y):
            assert t.dtype == dtype
            return -y

    field = Field()
    attached(field, 0.5)
    assert field(torch.tensor(0.0, dtype=dtype), torch.ones(2, dtype=dtype)).dtype == dtype
    half = field(torch.tensor(0.0, dtype=dtype), torch.ones(2, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_made_within_a_step_is_nominal_and_can_be_steered_itself(copied):
    model, y0 = nn.Sequential(CosineField()), initial_state()
    nominal = odeint(model[0], y0, times(0.0, 1.0))
    settings = {"b": 0.5, "step": 1, "seed": 0, "vector_fields": ["0"]}
    with steer(model, **settings):
        moved = odeint(model[0], y0, times(0.0, 1.0))
        twin = copied(model)
        assert torch.equal(odeint(twin[0], y0, times(0.0, 1.0)), nominal)
    with steer(twin, **settings):
        assert torch.equal(odeint(twin[0], y0, times(0.0, 1.0)), moved)
        assert torch.equal(odeint(model[0], y0, times(0.0, 1.0)), nominal)


def test_detach_takes_the_hooks_off():
    field, y0 = CosineField(), initial_state()
    before = odeint(field, y0, times(0.0, 1.0))
    horizon = attached(field, 0.4)
    assert horizon.attached
    horizon.detach()
    assert not horizon.attached
    assert not field._forward_pre_hooks
    assert not field._forward_hooks
    assert torch.equal(odeint(field, y0, times(0.0, 1.0)), before)


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("sample", r"'flow.func', but got 'sample'.*ODEBlock"),
        ("batch", r"\|t1 - t0\| = 0.5, .*but got b = 0.5"),
    ],
)
def test_a_draw_that_does_not_fit_is_refused(scope, message):
    with pytest.raises(ValueError, match=message):
        attached(CosineField(), t0=0.5, t1=1.0).perturb(EndTimeDraw(0.5, scope=scope))


def test_compiled_fields_follow_the_end_time():
    torch._dynamo.reset()
    field, y0 = CosineField(), initial_state()
    horizon = attached(field, 0.2)
    counter = CompileCounter()
    compiled = torch.compile(field, backend=counter)
    for offset in (0.2, -0.3, 0.4):
        horizon.perturb(FixedOffset(offset))
        y = odeint(compiled, y0, times(0.0, 1.0), **TIGHT)[-1]
        torch.testing.assert_close(y, field.exact(y0, 0.0, 1.0 + offset), rtol=1e-7, atol=1e-7)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:odeint got a function")
def test_the_argument_t_is_the_time_and_a_state_in_its_place_is_refused():
    class Swapped(CosineField):
        def forward(self, y, t):
            return super().forward(t, y)

    field, y0 = Swapped(), initial_state()
    attached(field, 0.4)
    found = odeint(lambda t, y: field(y, t=t), y0, times(0.0, 1.0), **TIGHT)[-1]
    torch.testing.assert_close(found, field.exact(y0, 0.0, 1.4), rtol=1e-7, atol=1e-7)
    for state, message in (
        (0.5, r"start of the solve, t = 0, but got t = \[0.5, 0.5"),
        (0.0, "one time"),
    ):
        with pytest.raises(ValueError, match=message):
            odeint(lambda t, y: field(y, t) + y0, torch.full_like(y0, state), times(0.0, 1.0))
