"""The implicit solver: its orders, its stability, and what it refuses."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from steer_lightning.solvers import (
    AdaptiveSolver,
    NFEBudgetExceededError,
    RosenbrockSolver,
    SolverError,
)
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from tests.helpers.problems import CosineField, initial_state, times
from tests.helpers.stiff import Pull, Swing, prothero_robinson, solve, two_scales

every_method = pytest.mark.parametrize("method", ROSENBROCK)
ORDERS = {"rodas5p": 5, "rodas4": 4, "rosenbrock23": 2}
DENSE_ORDERS = {"rodas5p": 4, "rodas4": 3, "rosenbrock23": 2}


def robertson(t, y):
    a, b, c = y.unbind(-1)
    first, last = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([first, -first - last, last], dim=-1)


def van_der_pol(t, y):
    x, v = y.unbind(-1)
    return torch.stack([v, 1000.0 * (1.0 - x * x) * v - x], dim=-1)


def one_step(method, field, y0, t, h):
    settings = {"tolerance": 1e9, "first_step": 10.0, "dense": True}
    solution = solve(field, y0, t, t + h, method=method, **settings)
    assert len(solution.steps) == 1
    return solution


@every_method
@pytest.mark.parametrize("timed", [False, True])
def test_order_of_the_solution_of_the_interpolant_and_of_the_error_estimate(method, timed):
    field, y0, errors = Swing(timed), initial_state(), []
    for h in (0.04, 0.02):
        solution, t = one_step(method, field, y0, 0.8, h), times(0.8, 0.8 + 0.4 * h, 0.8 + h)
        exact = AdaptiveSolver("tsit5", 1e-13, 1e-13).solve(field, y0, t).ys
        inside, end = (solution.at(t) - exact)[1:].detach().abs().amax((1, 2))
        errors.append(torch.stack([end, inside, solution.steps.error_estimates()[0].detach()]))
    found = (errors[0] / errors[1]).log2().tolist()
    order, dense, estimate = ORDERS[method], DENSE_ORDERS[method], ROSENBROCK[method].error_order
    assert found == pytest.approx([order + 1, dense + 1, estimate], abs=0.4)


@every_method
def test_a_fast_pull_is_forgotten_in_one_step(method):
    """L-stable: not only bounded."""
    y = one_step(method, lambda t, y: -1e10 * y, initial_state(), 0.0, 1.0).ys[-1]
    assert float(y.abs().max()) < 1e-6


@every_method
@pytest.mark.parametrize("start", [1.0, 1.5])
def test_no_step_is_bounded_by_stability(method, start):
    tolerance = 1e-3 if method == "rosenbrock23" else 1e-6
    y0 = times(start)[:, None]
    solution = solve(prothero_robinson, y0, 0.0, 10.0, method=method, tolerance=tolerance)
    assert abs(float(solution.ys[-1]) - math.cos(10.0)) < 10.0 * tolerance
    assert solution.stats.accepted < 300  # an explicit method: three million


PROBLEMS = {
    "robertson": (robertson, (1.0, 0.0, 0.0), 1e4, (1.0, 1e-5, 1.0)),
    "van der pol": (van_der_pol, (2.0, 0.0), 1000.0, (1.0, 1e-3)),
    "two scales": (two_scales, (0.0,), 15.0, (1.0,)),
    "prothero and robinson": (prothero_robinson, (1.5,), 3.0, (1.0,)),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    """A field, its start and end, the sizes of its parts, and its solution by scipy."""
    field, y0, t1, sizes = PROBLEMS[request.param]
    ends = [
        solve_ivp(
            lambda t, y: field(times(t)[0], torch.tensor(y)).numpy(),
            (0.0, t1), y0, method=scipys, rtol=rtol, atol=1e-13,
        ).y[:, -1]
        for scipys, rtol in (("Radau", 1e-10), ("BDF", 1e-8))
    ]  # fmt: skip
    radau, bdf = (torch.from_numpy(end) for end in ends)
    torch.testing.assert_close(bdf, radau, rtol=1e-5, atol=1e-9)
    return field, times(*y0)[None], t1, times(*sizes), radau


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        *(("rodas5p", tolerance) for tolerance in (1e-4, 1e-6, 1e-8)),
        *(("rodas4", tolerance) for tolerance in (1e-4, 1e-6)),
        ("rosenbrock23", 1e-4),
    ],
)
def test_stiff_problems_are_solved_to_tolerance_as_by_scipy(problem, method, tolerance):
    field, y0, t1, sizes, expected = problem
    atol = 1e-4 * tolerance
    found = solve(field, y0, 0.0, t1, method=method, tolerance=tolerance, atol=atol).ys[-1, 0]
    assert float(((found - expected) / sizes).abs().max()) < 30.0 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_method
def test_samples_of_very_different_stiffness(method, dtype):
    field, y0 = Pull(1.0, 1e2, 1e4, 1e6).to(dtype), times(2.0, 2.0, 2.0, 2.0)[:, None].to(dtype)
    solution = solve(field, y0, 0.0, 1.0, method=method, tolerance=1e-4)
    assert solution.ys.dtype == dtype
    expected = field.exact(y0, torch.ones((), dtype=dtype))
    torch.testing.assert_close(solution.ys[-1], expected, rtol=0.0, atol=1e-3)
    assert solution.stats.accepted < 400


def test_a_solution_that_ends_is_an_error_of_the_step():
    y0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(SolverError, match=r"t = (1|0\.99)"):
        solve(lambda t, y: y * y, y0, 0.0, 2.0, max_nfe=2000)


def test_the_budget_names_the_solver_for_stiff_fields():
    y0 = times(1.5)[:, None]
    with pytest.raises(NFEBudgetExceededError, match="use RosenbrockSolver where it is stiff"):
        AdaptiveSolver(max_nfe=1000).solve(prothero_robinson, y0, times(0.0, 10.0))
    with pytest.raises(NFEBudgetExceededError, match=r"max_nfe = 100 .*dt = .*rtol = 1e-06"):
        solve(prothero_robinson, y0, 0.0, 10.0, max_nfe=100)


class Large(nn.Module):
    def forward(self, t, y):
        raise AssertionError("the vector field was evaluated")


def test_a_state_too_large_is_refused_with_its_size():
    message = (
        r"at most max_dimension = 256 .* got 784: for 32 samples each step would keep 150 MiB of "
        r".* Use FixedGridSolver or AdaptiveSolver without stiff='switch', or raise max_dim"
    )
    y0 = torch.zeros(32, 1, 28, 28)
    with pytest.raises(ValueError, match=message):
        RosenbrockSolver().solve(Large(), y0, times(0.0, 1.0))
    with pytest.raises(ValueError, match=message):
        AdaptiveSolver(stiff="switch").solve(Large(), y0, times(0.0, 1.0))
    y0 = initial_state().requires_grad_()
    with pytest.raises(ValueError, match=r"max_dimension = 1 .* got 2: .* keep 0.000183 MiB of"):
        solve(CosineField(), y0, 0.0, 1.0, max_dimension=1)
    solve(CosineField(), y0, 0.0, 1.0, max_dimension=2)  # just as many are solved


def test_a_complex_state_is_refused():
    y0 = torch.ones(2, 1, dtype=torch.complex128)
    with pytest.raises(TypeError, match=r"Expected a real state .* but got torch.complex128"):
        solve(Large(), y0, 0.0, 1.0)
