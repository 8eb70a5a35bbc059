"""The adaptive solver against closed forms, scipy, torchdiffeq, and counts by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK23, RK45, solve_ivp

from steer_lightning.solvers import (
    AdaptiveSolver,
    NonFiniteStateError,
    RosenbrockSolver,
    SolveStats,
    StepSizeUnderflowError,
)
from steer_lightning.solvers.step_size import StepController
from steer_lightning.solvers.tableaus import ADAPTIVE, FIXED
from tests.helpers.problems import CosineField, OscillatorField, initial_state, times

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
    if tableau.error:
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
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_error_follows_the_tolerance(method, tolerance):
    """Against scipy's DOP853, on a problem of changing speed, between the steps too."""

    def field(t, y):
        x, v = y[..., 0], y[..., 1]
        return torch.stack([v, 2.0 * (1 - x * x) * v - x], dim=-1)

    y0, t = times(2.0, 0.0), torch.linspace(0.0, 9.0, 50, dtype=torch.float64)
    theirs = solve_ivp(
        lambda t, y: field(t, torch.tensor(y)).numpy(), (0.0, 9.0), y0.numpy(),
        method="DOP853", rtol=1e-12, atol=1e-12, t_eval=t.numpy(),
    )  # fmt: skip
    solver = AdaptiveSolver(method, tolerance, tolerance)
    solution = solver.solve(field, y0[None], times(0.0, 9.0), dense=True)
    errors = (solution.at(t)[:, 0] - torch.from_numpy(theirs.y.T)).abs()
    assert 0.01 * tolerance < float(errors[-1].max())
    assert float(errors.max()) < 100 * tolerance


def test_no_evaluation_is_lost_on_a_first_step_that_is_far_too_small():
    """A straight line is crossed in two steps, a state of zero is no reason to creep."""
    for y0 in (initial_state(), 0.0 * initial_state()):
        line = AdaptiveSolver().solve(lambda t, y: torch.ones_like(y), y0, times(0.0, 0.1))
        assert line.stats.accepted <= 2
    zero = AdaptiveSolver().solve(lambda t, y: 0.0 * y, initial_state(), times(0.0, 1.0))
    assert zero.stats == SolveStats(nfe_forward=7, accepted=1)
    assert torch.equal(zero.ys[-1], initial_state())


def test_a_slope_whose_powers_underflow_is_as_good_as_none():
    for solver in (AdaptiveSolver("dopri5"), AdaptiveSolver("bosh3"), RosenbrockSolver()):
        found = solver.solve(lambda t, y: 1e-130 + 0.0 * y, initial_state(), times(0.0, 1.0))
        assert torch.equal(found.ys[-1], initial_state())


@pytest.mark.parametrize("t1", [0.1, 1 / 3, 7.7])
def test_the_last_step_ends_where_it_is_asked_to(t1):
    solution = AdaptiveSolver().solve(CosineField(), initial_state(), times(0.0, t1), dense=True)
    assert solution.steps.knots[[0, -1]].tolist() == [0.0, t1]
    lengths = [abs(h) for h in solution.steps.lengths]
    assert min(lengths) > 0.05 * max(lengths)  # no crumb is left for it


@pytest.mark.parametrize(("after", "t"), [(-1.0, "0"), (1e-9, "1e-09"), (0.5, "0.5")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_field_or_state_that_is_not_finite_is_refused_where_it_is(after, t, bad):
    def field(t, y):
        return -y + (bad if t > after else 0.0)

    message = rf"NaN or infinite at t = {t} in the forward solve"
    with pytest.raises(NonFiniteStateError, match=message):
        AdaptiveSolver().solve(field, initial_state(), times(0.0, 1.0))
    y0 = initial_state()
    y0[1, 1] = bad
    for first_step in ("auto", 0.1):
        for solver in (AdaptiveSolver, RosenbrockSolver):
            with pytest.raises(NonFiniteStateError, match="at t = 0 in the forward solve"):
                solver(first_step=first_step).solve(CosineField(), y0, times(0.0, 1.0))


@pytest.mark.parametrize("solver", [AdaptiveSolver(), RosenbrockSolver()], ids=repr)
def test_a_part_whose_error_does_not_count_has_to_be_finite_too(solver):
    class Field(OscillatorField):
        controlled_parts = 1

        def forward(self, t, y):
            return -y[0], torch.log(y[0] - 0.7)

    y0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(NonFiniteStateError, match=r"at t = 0\.3"):
        solver.solve(Field(), (y0, 0.0 * y0), times(0.0, 1.0))


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


def test_many_overflows_one_by_one_are_no_failure():
    calls, cosine = itertools.count(1), CosineField()

    def flaky(t, y):
        return cosine(t, y) + (math.inf if next(calls) % 40 == 0 else 0.0)

    solver = AdaptiveSolver("dopri5", 1e-6, 1e-6)
    solution = solver.solve(flaky, initial_state(), times(0.0, 60.0))
    assert solution.stats.rejected > 30
    expected = cosine.exact(initial_state(), 0.0, 60.0)
    torch.testing.assert_close(solution.ys[-1], expected, rtol=1e-3, atol=1e-3)
