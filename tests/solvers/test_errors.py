"""What an error of a solver carries, and what is added on its way up."""

import pickle

import pytest
import torch
from torch import nn

from steer_lightning.solvers import (
    AdaptiveSolver,
    NFEBudgetExceededError,
    NonFiniteStateError,
    RepeatedFailureError,
    RosenbrockSolver,
    SolverError,
    SolveStats,
    StepSizeUnderflowError,
    TorchdiffeqSolver,
)
from tests.helpers.problems import CosineField, initial_state, times


def test_context_is_added_on_the_way_up_and_the_first_to_know_stays():
    error = NonFiniteStateError(0.5, "forward")
    assert error.with_context(nfe=7, rtol=1e-3, atol=None) is error
    error.with_context(nfe=9, atol=1e-4, block="flow", stage="training", batch_idx=0, rank=0)
    assert (error.nfe, error.rtol, error.atol, error.block) == (7, 1e-3, 1e-4, "flow")
    assert str(error) == (
        f"{error.args[0]} Where: block 'flow', t = 0.5, NFE = 7, rtol = 0.001, atol = 0.0001, "
        f"training, batch 0, rank 0."
    )
    with pytest.raises(TypeError, match=r"Expected names among \['atol', .* but got 'blok'"):
        NonFiniteStateError(0.5, "forward").with_context(blok="flow")


@pytest.mark.parametrize(
    "error",
    [
        NFEBudgetExceededError(10, 0.5, "forward"),
        StepSizeUnderflowError(1e-17, 0.5, "backward"),
        NonFiniteStateError(0.5, "forward"),
    ],
)
def test_errors_of_one_tree_travel_between_processes_without_the_counts(error):
    error.with_context(block="flow", dtype=torch.float32, stats=SolveStats())
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, SolverError)
    assert isinstance(copy, RuntimeError)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert (copy.block, copy.t, copy.dtype, copy.stats) == ("flow", 0.5, torch.float32, None)


def test_repeated_failures_name_the_first_and_the_last():
    with pytest.raises(SolverError, match=r"3 training .* The first, A\. The last, B\. .*raise"):
        raise RepeatedFailureError(3, "A.", "B.")


@pytest.mark.parametrize(
    "solver",
    [
        TorchdiffeqSolver(max_nfe=20),
        AdaptiveSolver(max_nfe=20),
        TorchdiffeqSolver("rk4", max_nfe=20, options={"step_size": 0.1}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_solve_fills_in_what_it_knows(solver, dtype):
    stats, fixed = SolveStats(nfe_forward=1000), solver.method == "rk4"  # of the block before
    field = CosineField().to(dtype)
    with pytest.raises(NFEBudgetExceededError, match=r"Where: t = .*NFE = \d+, torch\.") as caught:
        solver.solve(field, initial_state(dtype=dtype), times(0.0, 50.0), stats=stats)
    error = caught.value
    assert (error.nfe, error.dtype) == (stats.nfe_forward - 1000, dtype)
    assert error.phase == "forward"
    assert (error.rtol, error.atol) == ((None, None) if fixed else (solver.rtol, solver.atol))
    assert error.stats is stats
    assert error.dt is None if fixed else 0.0 < error.dt < 50.0
    assert error.block is error.batch_idx is None
    assert (stats.smallest_dt == float("inf")) == fixed


@pytest.mark.parametrize("solver", [AdaptiveSolver, RosenbrockSolver])
@pytest.mark.parametrize("broken_from", [0.0, 1e-300])
def test_a_field_that_gives_nan_is_given_up_soon_whatever_the_first_step(solver, broken_from):
    def field(t, y):
        return -y if t < broken_from else -y * torch.nan

    stats = SolveStats()
    with pytest.raises(NonFiniteStateError):
        solver(first_step=0.1).solve(field, initial_state(), times(0.0, 1.0), stats=stats)
    assert stats.rejected <= 30


def test_an_adjoint_fills_it_in_too():
    class Broken(nn.Module):
        """Fine in the forward solve; the state's adjoint is infinite."""

        def forward(self, t, y):
            return (y - y.detach()).sqrt() - y.detach()

    y0, stats = torch.ones(1, requires_grad=True), SolveStats()
    solver = TorchdiffeqSolver(gradient="adjoint")
    solution = solver.solve(Broken(), y0, times(0.0, 1.0), stats=stats)
    with pytest.raises(NonFiniteStateError, match=r"backward solve.*Where: .*NFE = ") as caught:
        solution.ys[-1].sum().backward()
    error = caught.value
    assert (error.phase, error.dtype, error.rtol) == ("backward", torch.float32, 1e-5)
    assert error.nfe == stats.nfe_backward
    assert error.stats is stats


@pytest.mark.parametrize("solver", [TorchdiffeqSolver(), AdaptiveSolver()])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_smallest_step_is_that_of_the_narrowest_place(solver, backwards):
    """A kink after a smooth start."""

    def field(t, y):
        return torch.where(t < 0.5, 0.0, 30.0 * torch.cos(30.0 * t)) * torch.ones_like(y)

    ends = times(1.0, 0.0) if backwards else times(0.0, 1.0)
    stats, smooth = SolveStats(), SolveStats()
    solver.solve(field, initial_state(), ends, stats=stats)
    solver.solve(CosineField(), initial_state(), times(0.0, 1.0), stats=smooth)
    assert 0.0 < stats.smallest_dt < 0.5 * smooth.smallest_dt < 1.0
    stats.reset()
    assert stats.smallest_dt == float("inf")


def test_the_smallest_step_of_an_adjoint_counts():
    class Kink(nn.Module):
        """Slow in the forward solve, quick in the adjoint's."""

        def forward(self, t, y):
            return 30.0 * torch.cos(100.0 * t) * (y - y.detach()) + 0.1 * y.detach()

    y0 = initial_state().requires_grad_()
    solution = TorchdiffeqSolver(gradient="adjoint").solve(Kink(), y0, times(0.0, 1.0))
    forward = solution.stats.smallest_dt
    solution.ys[-1].sum().backward()
    assert 0.0 < solution.stats.smallest_dt < 0.2 * forward


def test_a_last_step_cut_short_is_no_small_step():
    solver, stats = AdaptiveSolver(), SolveStats()
    solver.solve(CosineField(), initial_state(), times(0.0, 1.0), stats=stats)
    steps = solver.solve(CosineField(), initial_state(), times(0.0, 1.0), dense=True).steps
    assert stats.smallest_dt == pytest.approx(min(steps.lengths[:-1]))
