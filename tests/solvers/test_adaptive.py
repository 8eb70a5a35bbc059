"""The adaptive solver against closed forms, scipy, torchdiffeq, and counts by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK23, RK45, solve_ivp
from torch import nn
from torchdiffeq import odeint

from steer_lightning.solvers import (
    AdaptiveSolver,
    NonFiniteStateError,
    SolveStats,
    StepSizeUnderflowError,
)
from steer_lightning.solvers.step_size import StepController
from steer_lightning.solvers.tableaus import ADAPTIVE, FIXED
from tests.helpers.problems import CosineField, LinearField, initial_state, times

SPANS = [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)]
every_method = pytest.mark.parametrize("method", ADAPTIVE)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_the_tableaus_meet_the_conditions_of_their_order(method):
    tableau = {**ADAPTIVE, **FIXED}[method]
    c, b = np.array(tableau.c), np.array(tableau.b)
    a = np.array([[*row, *[0.0] * (len(c) - len(row))] for row in tableau.a])
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    for q in range(tableau.order):
        assert b @ c**q == pytest.approx(1 / (q + 1))
    if tableau.order >= 4:  # the trees that are no powers of c
        assert b @ a @ c == pytest.approx(1 / 6)
        assert b @ (c * (a @ c)) == pytest.approx(1 / 8)
        assert b @ a @ a @ c == pytest.approx(1 / 24)
    if tableau.error is not None:
        for q in range(tableau.order - 1):
            assert np.array(tableau.error) @ c**q == pytest.approx(0.0, abs=1e-14)
        np.testing.assert_allclose(np.sum(tableau.interpolant, axis=1), b, atol=1e-13)


@pytest.mark.parametrize(("method", "theirs"), [("dopri5", RK45), ("bosh3", RK23)])
def test_the_coefficients_are_scipys(method, theirs):
    tableau = ADAPTIVE[method]
    assert np.array_equal(tableau.c, [*theirs.C, 1.0])
    assert np.array_equal(tableau.b, [*theirs.B, 0.0])
    np.testing.assert_allclose(np.abs(tableau.error), np.abs(theirs.E), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(tableau.interpolant, theirs.P, rtol=1e-12, atol=1e-15)


@every_method
def test_the_order_of_a_step(method):
    """One step of length h: the local error falls with the order plus one."""
    field, y0, errors = LinearField(), initial_state(), []
    for h in (0.1, 0.05):
        solver = AdaptiveSolver(method, 1e6, 1e6, first_step=10.0)
        solution = solver.solve(field, y0, times(0.5, 0.5 + h))
        assert solution.stats.accepted == 1
        errors.append((solution.ys[-1] - field.exact(y0, 0.5, 0.5 + h)).detach().abs().max())
    order = float((errors[0] / errors[1]).log2())
    assert order == pytest.approx(ADAPTIVE[method].order + 1, abs=0.4)


@every_method
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_error_follows_the_tolerance(method, tolerance):
    """Against scipy's DOP853, on a problem of changing speed."""

    def field(t, y):
        x, v = y[..., 0], y[..., 1]
        return torch.stack([v, 2.0 * (1 - x * x) * v - x], dim=-1)

    y0 = times(2.0, 0.0)
    theirs = solve_ivp(
        lambda t, y: field(t, torch.tensor(y)).numpy(), (0.0, 9.0), y0.numpy(),
        method="DOP853", rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    found = AdaptiveSolver(method, tolerance, tolerance).solve(field, y0[None], times(0.0, 9.0))
    error = float((found.ys[-1, 0] - torch.from_numpy(theirs.y[:, -1])).abs().max())
    assert 0.01 * tolerance < error < 100 * tolerance


class Net(nn.Module):
    """A small network, in float64, that ignores time."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(2, 5, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.a) @ self.b


@every_method
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("span", SPANS)
def test_values_and_gradients_are_those_of_torchdiffeq(method, checkpoint, span):
    field, y0 = Net(), initial_state().requires_grad_()
    t = torch.linspace(*span, 7, dtype=torch.float64)
    tolerance = 1e-8 if method == "bosh3" else 1e-10
    solver = AdaptiveSolver(method, tolerance, tolerance, None, checkpoint=checkpoint)
    found = solver.solve(field, y0, t).ys
    expected = odeint(field, y0, t, rtol=1e-11, atol=1e-11, method="dopri5")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    inputs, weights = [y0, *field.parameters()], torch.linspace(0.5, 1.0, 42).double()
    gradients = [
        torch.autograd.grad((ys.reshape(-1) * weights).sum(), inputs) for ys in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t_eval", [(0.2, 1.1), (1.1, 0.2), (0.2, 0.5, 0.9, 1.1)])
def test_gradients_in_state_times_and_parameters_are_those_of_finite_differences(t_eval):
    field, solver = CosineField(), AdaptiveSolver("dopri5", 1e-11, 1e-11)
    del field.a

    def outputs(y0, t_eval, a):
        field.a = a
        return solver.solve(field, y0, t_eval).ys

    inputs = (initial_state(2, 1), times(*t_eval), torch.tensor(0.9, dtype=torch.float64))
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-5, atol=1e-6)


def test_rejected_steps_leave_nothing_on_the_tape():
    """The kept tensors are those of as many evaluations as the accepted steps have."""
    kept = []

    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * y

        @staticmethod
        def backward(ctx, gradient):
            kept.append(1)
            return gradient

    y0 = initial_state().requires_grad_()
    solver = AdaptiveSolver(rtol=1e-8, atol=1e-8, first_step=2.0)
    solution = solver.solve(lambda t, y: -Squared.apply(y), y0, times(0.0, 2.0))
    assert solution.stats.rejected >= 1
    solution.ys[-1].sum().backward()
    # The last slope of all, at the end, has no part in the state there.
    assert len(kept) == 6 * solution.stats.accepted


def test_work_is_counted_and_added_up():
    # One slope at the start, one to find the first step, six a step.
    field, stats, solver = CosineField(), SolveStats(), AdaptiveSolver(rtol=1e-6, atol=1e-6)
    once = solver.solve(field, initial_state(), times(0.0, 20.0)).stats
    assert once.nfe_forward == 2 + 6 * (once.accepted + once.rejected)
    assert once.rejected > 0
    for _ in range(2):
        assert solver.solve(field, initial_state(), times(0.0, 20.0), stats=stats).stats is stats
    assert stats.nfe_forward == 2 * once.nfe_forward


@pytest.mark.parametrize("first_step", [0.01, "auto", "previous"])
def test_the_first_step_is_the_one_asked_for(first_step):
    solver = AdaptiveSolver(first_step=first_step)
    for suggested in (None, 0.02):
        solution = solver.solve(
            CosineField(), initial_state(), times(0.0, 1.0), dense=True, first_step=suggested
        )
        known = suggested or (first_step if isinstance(first_step, float) else None)
        guesses = known is None
        assert solution.stats.nfe_forward == 1 + guesses + 6 * solution.stats.accepted
        if known is not None:
            assert solution.steps.lengths[0] == pytest.approx(known)
    assert solver.remembers == (first_step == "previous")


def test_no_evaluation_is_lost_on_a_first_step_that_is_far_too_small():
    """A straight line is crossed in two steps, a state of zero is no reason to creep."""
    for y0 in (initial_state(), 0.0 * initial_state()):
        line = AdaptiveSolver().solve(lambda t, y: torch.ones_like(y), y0, times(0.0, 0.1))
        assert line.stats.accepted <= 2
    zero = AdaptiveSolver().solve(lambda t, y: 0.0 * y, initial_state(), times(0.0, 1.0))
    assert zero.stats == SolveStats(nfe_forward=7, accepted=1)
    assert torch.equal(zero.ys[-1], initial_state())


@pytest.mark.parametrize("t1", [0.1, 1 / 3, 7.7])
def test_the_last_step_ends_where_it_is_asked_to(t1):
    solution = AdaptiveSolver().solve(CosineField(), initial_state(), times(0.0, t1), dense=True)
    assert solution.steps.knots[[0, -1]].tolist() == [0.0, t1]
    lengths = [abs(h) for h in solution.steps.lengths]
    assert min(lengths) > 0.05 * max(lengths)  # no crumb is left for it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_field_gets_times_in_the_precision_of_the_state(dtype):
    def field(t, y):
        assert (t.dtype, t.shape, y.dtype) == (dtype, (), dtype)
        return -y

    ys = AdaptiveSolver().solve(field, initial_state(dtype=dtype), times(0.0, 1.0)).ys
    assert ys.dtype == dtype


@pytest.mark.parametrize("t0", [1e4, 1e6])
def test_float32_times_far_from_zero_keep_their_length(t0):
    y0 = torch.zeros(2, 1)
    ys = AdaptiveSolver().solve(lambda t, y: torch.ones_like(y), y0, times(t0, t0 + 0.7371)).ys
    torch.testing.assert_close(ys[-1], torch.full_like(y0, 0.7371), rtol=1e-6, atol=0.0)


def test_tiny_spans_batches_of_one_and_complex_states():
    y0 = torch.ones(1, 1, dtype=torch.complex128)
    for span in (1e-12, 1.0):
        ys = AdaptiveSolver(rtol=1e-9).solve(lambda t, y: 1j * y, y0, times(0.0, span)).ys
        torch.testing.assert_close(ys[-1], torch.exp(1j * span * y0), rtol=1e-5, atol=1e-5)


def test_times_of_samples_reach_a_warped_field():
    from steer_lightning.horizon import WarpedField
    from steer_lightning.horizon.time_warp import TimeWarp

    field, y0, rates = LinearField(), initial_state(), times(0.5, 1.0, 1.5)
    warped = WarpedField(field, TimeWarp(0.0, 0.0, rates))
    ys = AdaptiveSolver(rtol=1e-9, atol=1e-9).solve(warped, y0, times(0.0, 1.0)).ys[-1]
    rows = [field.exact(y0[i : i + 1], 0.0, float(t)) for i, t in enumerate(rates)]
    torch.testing.assert_close(ys, torch.cat(rows), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_refused(bad):
    y0 = initial_state()
    y0[1, 1] = bad
    with pytest.raises(NonFiniteStateError, match="NaN or infinite at t = 0 in the forward solve"):
        AdaptiveSolver().solve(CosineField(), y0, times(0.0, 1.0))


@pytest.mark.parametrize(("after", "t"), [(1e-9, "1e-09"), (0.5, "0.5")])
def test_a_field_that_turns_nan_is_refused_where_it_does(after, t):
    def field(t, y):
        return -y + (math.nan if t > after else 0.0)

    with pytest.raises(NonFiniteStateError, match=rf"at t = {t} in"):
        AdaptiveSolver().solve(field, initial_state(), times(0.0, 1.0))


def test_an_overflow_in_a_step_too_long_is_tried_again_with_a_shorter_one():
    y0, trials = 100.0 * initial_state(), []

    def field(t, y):
        trials.append(y)
        return -y.pow(3)

    y = AdaptiveSolver("dopri5", 1e-8, 1e-8, first_step=1.0).solve(field, y0, times(0.0, 1.0)).ys
    assert not all(bool(trial.isfinite().all()) for trial in trials)
    torch.testing.assert_close(y[-1], y0 / (1.0 + 2.0 * y0.square()).sqrt(), rtol=1e-6, atol=0.0)


def test_steps_that_no_longer_advance_time_are_refused():
    """A jump as large as the state, at a time that no step hits."""

    def field(t, y):
        return torch.where(t < 1.0 / 3.0, 1.0, 1e20) * torch.ones_like(y)

    with pytest.raises(StepSizeUnderflowError, match=r"dt = .* no longer advances t = 0\.333"):
        AdaptiveSolver(max_nfe=None).solve(field, initial_state(), times(0.0, 1.0))


def test_the_controller_by_hand():
    controller = StepController(order=5)
    assert controller.next_step(1.0, 2.0) == pytest.approx(0.9 * 2.0**-0.2)  # rejected
    assert controller.next_step(1.0, 1e-8) == 1.0  # after that, no longer than it was
    assert controller.next_step(1.0, 1e-8) == pytest.approx(10.0)
    assert controller.next_step(1.0, 0.5) == pytest.approx(0.9 * 0.5**-0.1775 * 1e-4**0.03)
    assert controller.next_step(1.0, 0.5) == pytest.approx(0.9 * 0.5**-0.1775 * 0.5**0.03)
    assert controller.next_step(1.0, 1e9) == pytest.approx(0.2)
    assert controller.next_step(1.0, math.nan) == pytest.approx(0.2)
