"""Wrapped solves, and adjoints whose failure does not leave the backward pass."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import (
    AdaptiveSolver,
    NFEBudgetExceededError,
    SolveStats,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.wrapping import has_adjoint, solve_enclosed, wrapped_solves
from tests.helpers.models import StubSolver
from tests.helpers.problems import OscillatorField, initial_state


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()  # tensors with a graph cannot be copied
def test_a_wrapped_solver_is_still_itself(shared):
    solver, calls = StubSolver(), []
    solvers = [solver, solver if shared else StubSolver()]
    model = nn.ModuleList([ODEBlock(MLPField(2, (4,)), solver) for solver in solvers])

    def listening(solve, *args, **kwargs):
        calls.append(args[2])
        return solve(*args, **kwargs)

    with wrapped_solves(model, listening):
        assert [block.solver for block in model] == solvers
        model[1](model[0](torch.zeros(1, 2)))
        copy.deepcopy(model)[0](torch.zeros(1, 2))  # whose solves are its own
    assert len(calls) == 2
    assert len(solver.t_evals) == (2 if shared else 1)
    assert all("solve" not in vars(solver) for solver in solvers)


@pytest.mark.parametrize("hold", [list, tuple, lambda xs: dict(enumerate(xs)), lambda xs: [xs]])
def test_solvers_in_containers_are_found(hold):
    model, solvers, found = nn.Module(), [StubSolver(), StubSolver()], []
    model.solvers = hold(solvers)
    with wrapped_solves(model, lambda solve, *args, **options: found.append(solve)):
        for solver in solvers:
            solver.solve(None, None, None)
    assert len(found) == 2


def test_solvers_are_chosen_and_come_back_after_an_exception():
    adjoint, other = TorchdiffeqSolver(gradient="adjoint"), AdaptiveSolver()
    block = ODEBlock(MLPField(2, (4,)), adjoint, eval_solver=other)
    found = []

    def breaks(solve, *args, **options):
        found.append("solve" in vars(other))
        raise KeyError

    with pytest.raises(KeyError), wrapped_solves(block, breaks, has_adjoint):
        block(torch.ones(1, 2))
    assert found == [False]
    assert "solve" not in vars(adjoint)


class Stubborn(nn.Module):
    """Tame in the forward solve; its adjoint needs more evaluations than there are."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, t, y):
        return self.a * y + 20.0 * torch.cos(2e3 * t) * (y - y.detach())


def unused(error):
    raise AssertionError("nothing failed")


def gradients(solve, field, parts, t_eval, stats=None):
    """Values and gradients in states, times and parameters."""
    parts = [part.detach().requires_grad_() for part in parts]
    t_eval = t_eval.detach().requires_grad_()
    y0 = tuple(parts) if len(parts) > 1 else parts[0]
    ys = solve(field, y0, t_eval, stats=stats).ys
    ys = ys if isinstance(ys, tuple) else (ys,)
    loss = sum((k + 1.0) * y.sin().sum() for k, y in enumerate(ys))  # y0 is among them
    inputs = [*parts, t_eval, *field.parameters()]
    return [*ys, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize(("field", "n_parts"), [(OscillatorField(), 2), (MLPField(2, (5,)), 1)])
def test_without_a_failure_nothing_changes(field, n_parts):
    states = [initial_state(dtype=p.dtype) for p in field.parameters()][:1] * n_parts
    t_eval, solver = torch.tensor([0.0, 0.4, 1.0]), TorchdiffeqSolver(gradient="adjoint")
    expected_stats, stats = SolveStats(), SolveStats()
    expected = gradients(solver.solve, field, states, t_eval, expected_stats)
    enclosed = partial(solve_enclosed, unused, solver.solve)
    found = gradients(enclosed, field, states, t_eval, stats)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert stats == expected_stats
    assert stats.nfe_backward > 0


def test_constants_get_no_gradient_and_without_gradients_it_is_a_plain_solve():
    field, y0, t_eval = MLPField(2, (5,)), torch.ones(1, 2), torch.tensor([0.0, 1.0])
    solver = TorchdiffeqSolver(gradient="adjoint")
    with torch.no_grad():
        assert solve_enclosed(unused, solver.solve, field, y0, t_eval).ys.grad_fn is None
    solve_enclosed(unused, solver.solve, field, y0, t_eval).ys.sum().backward()
    assert y0.grad is None
    assert all(p.grad is not None for p in field.parameters())


def failing(failed):
    """Value and gradients of a solve whose adjoint fails."""
    solver = TorchdiffeqSolver(rtol=1e-6, atol=1e-6, gradient="adjoint", max_nfe=500)
    t_eval, y0 = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(1, 1).double()
    enclosed = partial(solve_enclosed, failed, solver.solve)
    found = gradients(enclosed, Stubborn(), [y0], t_eval)
    return found[0][-1], found[1:]


def test_an_adjoint_that_fails_gives_zero_gradients():
    errors = []
    y1, found = failing(errors.append)
    (error,) = errors
    assert isinstance(error, NFEBudgetExceededError)
    assert (error.phase, error.nfe) == ("backward", 500)
    assert y1.item() == pytest.approx(0.60653066, abs=1e-6)  # exp(-1/2), of the forward solve
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)


def test_other_exceptions_pass():
    def failed(error):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        failing(failed)
