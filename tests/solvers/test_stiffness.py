"""The choice between the explicit and the implicit method."""

import math
import warnings

import pytest
import torch

from steer_lightning.solvers import AdaptiveSolver, RosenbrockSolver, stiffness
from steer_lightning.solvers.tableaus import DOPRI5
from tests.helpers.problems import CosineField, initial_state, times
from tests.helpers.stiff import Pull, two_scales


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_stiffness_is_said_once(method):
    solver = AdaptiveSolver(method, stiff="warn")
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    message = rf"not stiff for {method}, but near t = .* about 1e\+03.*Use RosenbrockSolver, or Ad"
    with pytest.warns(UserWarning, match=message):
        found = solver.solve(two_scales, y0, times(0.0, 1.0)).ys
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.solve(two_scales, y0, times(0.0, 1.0))
        plain = AdaptiveSolver(method).solve(two_scales, y0, times(0.0, 1.0)).ys
    assert torch.equal(found, plain)


@pytest.mark.parametrize("stiff", ["warn", "switch"])
@pytest.mark.parametrize("ends", [(0.0, 20.0), (20.0, 0.0)])
def test_a_field_that_is_not_stiff_stays_with_the_explicit_method(stiff, ends):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = AdaptiveSolver(stiff=stiff).solve(CosineField(), initial_state(), times(*ends))
    plain = AdaptiveSolver().solve(CosineField(), initial_state(), times(*ends))
    assert torch.equal(solution.ys, plain.ys)
    assert solution.stats == plain.stats


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-9, 1e-11])
def test_stiffness_is_seen_at_every_tolerance(tolerance):
    solver = AdaptiveSolver("dopri5", tolerance, tolerance, None, stiff="switch")
    for field, y0, stiff in (
        (lambda t, y: -2000.0 * (y - t.cos()), [[0.0]], True),
        (lambda t, y: torch.stack([y[:, 1], -25.0 * y[:, 0]], 1), [[1.0, 0.0]], False),
        (lambda t, y: -y, [[1.0]], False),
    ):
        y0 = torch.tensor(y0, dtype=torch.float64)
        stats = solver.solve(field, y0, times(0.0, 0.5 if stiff else 10.0)).stats
        assert (stats.jacobians > 0) is stiff


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_stiff_solve_is_handed_over_to_the_implicit_method(checkpoint):
    t = times(0.0, 0.01, 0.5, 7.0, 15.0)
    solver = AdaptiveSolver("dopri5", 1e-7, 1e-7, checkpoint=checkpoint, stiff="switch")
    y0 = torch.zeros(1, 1, dtype=torch.float64).requires_grad_()
    solution = solver.solve(two_scales, y0, t, dense=True)
    exact = 3.0 - (2000.0 * torch.exp(-t) + 997.0 * torch.exp(-1000.0 * t)) / 999.0
    torch.testing.assert_close(solution.ys[:, 0, 0], exact, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(solution.at(t)[:, 0, 0], exact, rtol=0.0, atol=1e-5)
    assert 0 < solution.stats.jacobians < 120
    assert solution.stats.accepted < 300
    assert len(solution.steps) == solution.stats.accepted
    assert len(solution.steps.error_estimates()) == solution.stats.accepted
    # Read at the very end, the gradient in the initial state is gone; early it is not.
    (gradient,) = torch.autograd.grad(solution.ys[1].sum(), y0)
    assert float(gradient) == pytest.approx(math.exp(-10.0), rel=1e-3)


def test_gradients_through_a_change_of_methods_are_those_of_either():
    found = []
    for solver in (
        AdaptiveSolver("tsit5", 1e-6, 1e-6, None, stiff="switch"),
        RosenbrockSolver("rodas5p", 1e-8, 1e-8),
    ):
        field, y0 = Pull(1.0, 500.0), times(2.0, 2.0)[:, None].requires_grad_()
        t = times(0.0, 1.0, 3.0).requires_grad_()
        solution = solver.solve(field, y0, t)
        assert solution.stats.jacobians > 0
        y = solution.ys[1:].sum()
        found.append(torch.autograd.grad(y, (y0, t, field.rates)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("s" * 20, True),
        ("s" * 19, False),
        ("s" * 19 + "l" * 6 + "s" * 19, False),
        (("s" + "l" * 5) * 19 + "s", True),  # never six others in a row
    ],
)
def test_twenty_steps_count_unless_six_others_come_in_a_row(steps, expected, monkeypatch):
    rates = iter([1e9 if step == "s" else 0.0 for step in steps])
    monkeypatch.setattr(stiffness, "stiffness_rate", lambda *_: next(rates))
    watch = stiffness.StiffnessWatch(DOPRI5, None, 1e-3)
    assert [watch.is_stiff(0.1, []) for _ in steps][-1] is expected
