"""The span that somebody else's model solves: learnt, checked, doubted."""

import contextlib
import gc
import math
import re
import warnings
from functools import partial
from weakref import ref

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_event

from steer_lightning import nominal, steer
from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.steering.attach import AttachedHorizon
from tests.helpers.attaching import TIGHT, attached, both_calls
from tests.helpers.problems import CosineField, initial_state, times


@pytest.mark.parametrize("t_eval", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.5, 2.0)])
@pytest.mark.parametrize("method", ["dopri5", "euler"])
def test_the_span_is_that_of_the_first_solve_and_no_other_is_accepted(t_eval, method):
    field, y0 = CosineField(), initial_state()
    horizon = AttachedHorizon(field, "flow.func")
    assert horizon.describe() == "that of the first solve"
    horizon.perturb(FixedOffset(0.4))
    assert math.isnan(horizon.in_force()["end_time"])
    odeint(field, y0, times(*t_eval), method=method)
    assert horizon.in_force() == {"end_time": pytest.approx(t_eval[-1] + 0.4)}
    odeint(field, y0, times(*t_eval[::-1]), method=method)
    for wrong in ((1.0, 1.5), (1.0, 20.0), (0.0, 1.0)):
        with pytest.raises(
            ValueError, match=r"'flow.func' to be solved over its span \(that of the .* from t = "
        ):
            odeint(field, y0, times(*wrong), method=method)
    horizon.reset()
    odeint(field, y0, times(0.0, 9.0))


def test_a_wrong_span_is_refused_and_one_that_b_does_not_fit():
    field, y0 = CosineField(), initial_state()
    attached(field, 0.4, t0=0.0, t1=5.0)
    with pytest.raises(ValueError, match=r"span, t0 = 0, t1 = 5, .* from t = 0 to 1\. Give the"):
        odeint(field, y0, times(0.0, 1.0))
    field = CosineField()
    AttachedHorizon(field, "flow.func").perturb(EndTimeDraw(0.5))
    with pytest.raises(ValueError, match=r"\|t1 - t0\| = 0.5, .*but got b = 0.5"):
        odeint(field, y0, times(0.5, 1.0))


def euler_by_hand(field, y0, t0, t1, n=10):
    """A solver that is not torchdiffeq's."""
    h = (t1 - t0) / n
    for i in range(n):
        y0 = y0 + h * field(times(t0 + i * h), y0)
    return y0


def test_where_no_solve_is_seen_the_span_must_be_given():
    field, y0 = CosineField(), initial_state()
    AttachedHorizon(field, "flow.func").perturb(FixedOffset(0.4))
    with pytest.raises(ValueError, match=r"t0 and t1, the span .* 'flow.func' .*nominal\(field\)"):
        euler_by_hand(field, y0, 0.0, 1.0)


@pytest.mark.parametrize(("end", "warns"), [(1.0, False), (10.0, True), (0.2, True)])
def test_evaluations_far_from_the_span_give_a_warning(end, warns):
    field = CosineField()
    horizon = attached(field, 0.4)
    euler_by_hand(field, initial_state(), 0.0, end)
    with warnings.catch_warnings(record=True, action="always") as caught:
        horizon.warn_of_doubts()
        horizon.warn_of_doubts()
    assert [bool(re.search("length of its span .0, 1. from t0", str(w.message))) for w in caught] \
        == [True] * warns  # fmt: skip


@pytest.mark.parametrize("by_hand", [False, True])
def test_times_that_need_gradients_are_looked_at_without_a_warning(by_hand):
    torch.set_warn_always(True)  # else torch warns once in a process
    field, y0, t_eval = CosineField(), initial_state(), times(0.0, 1.0).requires_grad_()
    attached(field, 0.4)
    try:
        with warnings.catch_warnings(action="error"):
            field(t_eval[:1].squeeze(), y0) if by_hand else odeint(field, y0, t_eval)
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("quiet", [False, True])
def test_an_evaluation_in_no_solve_is_nominal_where_it_says_so_and_a_warning_elsewhere(quiet):
    model, y0 = nn.Sequential(CosineField()), initial_state()
    expected = model[0](times(0.5), y0)
    with (
        warnings.catch_warnings(record=True, action="always") as caught,
        steer(model, b=0.5, step=0, seed=0, vector_fields=["0"]) as ends,
    ):
        y = odeint(model[0], y0, times(0.0, 1.0), **TIGHT)[-1]
        torch.testing.assert_close(y, model[0].exact(y0, 0.0, ends["steer/0/end_time"]))
        with nominal(model[0]) if quiet else contextlib.nullcontext():
            found = model[0](times(0.5), y0)
    assert torch.equal(found, expected) is quiet
    messages = [str(w.message) for w in caught]
    assert len(messages) == (not quiet)
    assert all("outside of any solve" in m and "steer_lightning.nominal" in m for m in messages)


@pytest.mark.parametrize("outer", ["0", ""])  # a part of the model, or the model itself
def test_a_module_around_the_field_that_gets_the_time_itself_is_to_be_named(outer):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = CosineField()

        def forward(self, t, y):
            return t * self.inner(t, y)

    solved = Wrapper()
    model = nn.Sequential(solved) if outer else solved
    inner = f"{outer}.inner".strip(".")
    message = rf"'{inner}' is called by .* unmoved. Name it: vector_fields=\['{outer}'\]"
    with (
        pytest.raises(ValueError, match=message),
        steer(model, b=0.5, step=0, vector_fields=[inner]),
    ):
        odeint(solved, initial_state(), times(0.0, 1.0))
    with steer(model, b=0.5, step=0, vector_fields=[outer]):
        odeint(solved, initial_state(), times(0.0, 1.0))


class Controlled(nn.Module):
    """A field and a control beside it, as torchcde makes one for each solve."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, y):
        return t * self.field(t, y)


AROUND = {
    "a module": (Controlled, "Controlled"),
    "a function": (lambda field: lambda t, y: t * field(t, y), "function"),
    "the field, compiled": (lambda field: torch.compile(field, backend="eager"), None),
    "its call": (lambda field: field.__call__, None),
    "arguments bound": (partial, None),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_is_put_around_the_field_is_warned_of_once(case, recwarn):
    around, name = AROUND[case]
    model = nn.Sequential(CosineField())
    for step in range(2):
        with steer(model, b=0.5, step=step, vector_fields=["0"]):
            odeint(around(model[0]), initial_state(), times(0.0, 1.0))
    said = [str(w.message) for w in recwarn if "vector field '0'" in str(w.message)]
    assert len(said) == (name is not None)
    assert all(f"odeint got a {name} around the vector field '0'" in words for words in said)


@pytest.mark.filterwarnings("ignore:odeint got a function")
def test_a_state_of_one_axis_that_may_be_times_is_warned_of():
    field = nn.Tanh()
    attached(field, 0.4)
    with pytest.warns(UserWarning, match="got 3 different times at once. If that is a state"):
        odeint(lambda t, y: field(y) + times(1.0, 2.0, 3.0), times(0.0, 0.0, 0.0), times(0.0, 1.0))


def test_a_field_may_call_its_own_field_the_base():
    class Field(CosineField):
        def __init__(self):
            super().__init__()
            self.base_func = CosineField()

    field = Field()
    with warnings.catch_warnings(), steer(field, b=0.5, step=0, vector_fields=[""]):
        warnings.simplefilter("error")
        odeint(field, initial_state(), times(1.0, 0.0))


@both_calls
def test_a_field_that_was_steered_is_freed_with_its_model(call):
    field = CosineField()
    with steer(field, b=0.5, step=0, vector_fields=[""]):
        call(field, initial_state(), times(0.0, 1.0))[-1].sum().backward()
    known = ref(field)
    del field
    gc.collect()
    assert known() is None


def test_a_number_given_to_the_model_of_an_unseen_solver_is_warned_of():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = CosineField()

        def forward(self, scale, y):
            return scale * (y + 0.5 * self.field(times(0.0)[0], y))

    model = Scaled()
    with (
        pytest.warns(
            UserWarning, match="called by 'the model', which gets a time itself, or some"
        ),
        steer(model, b=0.5, step=0, vector_fields=["field"], t0=0.0, t1=1.0),
    ):
        model(torch.tensor(2.0), initial_state())


def test_a_solve_that_ends_at_an_event_is_refused():
    model, y0 = nn.Sequential(CosineField()), initial_state()
    t0, event = times(0.0)[0], {"event_fn": lambda t, y: t - 0.5}
    with steer(model, b=0.5, step=0, vector_fields=["0"]):
        with pytest.raises(ValueError, match="ends at an event: there is no end time to draw"):
            odeint_event(model[0], y0, t0, **event)
        with nominal(model[0]):
            end, _ = odeint_event(model[0], y0, t0, **event)
    assert float(end) == pytest.approx(0.5)


def test_a_module_around_the_field_may_get_an_end_time():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = CosineField()

        def forward(self, end, y0):
            return odeint(self.inner, y0, torch.stack([times(0.0)[0], end]), **TIGHT)[-1]

    model, y0 = nn.Sequential(Flow()), initial_state()
    with steer(model, b=0.5, step=0, vector_fields=["0.inner"]) as ends:
        y = model[0](times(1.0)[0], y0)
    expected = model[0].inner.exact(y0, 0.0, ends["steer/0.inner/end_time"])
    torch.testing.assert_close(y, expected)


def test_one_step_that_evaluates_at_t0_alone_gives_no_warning():
    field = CosineField()
    horizon = attached(field, 0.4)
    euler_by_hand(field, initial_state(), 0.0, 1.0, n=1)
    with warnings.catch_warnings(record=True, action="always") as caught:
        horizon.warn_of_doubts()
    assert not caught
