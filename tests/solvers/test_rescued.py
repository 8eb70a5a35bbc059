"""Adjoints whose failure does not leave the backward pass."""

import math

import pytest
import torch
from torch import nn

from steer_lightning.nn import MLPField
from steer_lightning.solvers import (
    FixedGridSolver,
    NFEBudgetExceededError,
    SolveStats,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.rescued import RescuedAdjoint


class Pair(nn.Module):
    """A state of two parts."""

    def __init__(self):
        super().__init__()
        self.field = MLPField(2, (5,))

    def forward(self, t, y):
        a, b = y
        return self.field(t, a), b * t


class Stubborn(nn.Module):
    """Tame in the forward solve; its adjoint needs more evaluations than there are."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, t, y):
        return self.a * y + 20.0 * torch.cos(2e3 * t) * (y - y.detach())


def unused(error, gradients_by):
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


@pytest.mark.parametrize("field_class", [Pair, MLPField])
def test_without_a_failure_nothing_changes(field_class):
    torch.manual_seed(0)
    field = Pair() if field_class is Pair else MLPField(2, (5,))
    parts = [torch.randn(3, 2) for _ in range(2 if field_class is Pair else 1)]
    t_eval, solver = torch.tensor([0.0, 0.4, 1.0]), TorchdiffeqSolver(gradient="adjoint")
    expected_stats, stats = SolveStats(), SolveStats()
    expected = gradients(solver.solve, field, parts, t_eval, expected_stats)
    rescued = RescuedAdjoint(solver.solve, unused)
    found = gradients(rescued, field, parts, t_eval, stats)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert stats == expected_stats
    assert stats.nfe_backward > 0


def test_without_gradients_it_is_a_plain_solve():
    solver = TorchdiffeqSolver(gradient="adjoint")
    with torch.no_grad():
        ys = RescuedAdjoint(solver.solve, unused)(
            MLPField(2, (5,)), torch.ones(1, 2), torch.tensor([0.0, 1.0])
        ).ys
    assert ys.grad_fn is None


def test_constants_get_no_gradient():
    field, y0 = MLPField(2, (5,)), torch.ones(1, 2)
    solver = TorchdiffeqSolver(gradient="adjoint")
    RescuedAdjoint(solver.solve, unused)(field, y0, torch.tensor([0.0, 1.0])).ys.sum().backward()
    assert y0.grad is None
    assert all(p.grad is not None for p in field.parameters())


def failing(rescue):
    """Gradients of a solve whose adjoint fails, and its counts."""
    solver = TorchdiffeqSolver(rtol=1e-6, atol=1e-6, gradient="adjoint", max_nfe=500)
    stats, y0 = SolveStats(), torch.ones(1, 1, dtype=torch.float64)
    t_eval = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = gradients(RescuedAdjoint(solver.solve, rescue), Stubborn(), [y0], t_eval, stats)
    return found[0][-1], found[1:], stats


def test_what_is_not_rescued_has_no_gradient():
    errors = []
    y1, found, _ = failing(lambda error, gradients_by: errors.append(error))
    (error,) = errors
    assert isinstance(error, NFEBudgetExceededError)
    assert (error.phase, error.nfe) == ("backward", 500)
    assert y1.item() == pytest.approx(0.60653066, abs=1e-6)  # exp(-1/2), of the forward solve
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)


def test_gradients_by_another_solver_take_the_place():
    """With as many steps as the quick part needs: exp(a + 20 sin(2000) / 2000) in closed form."""
    y1, (dy0, dt, da), stats = failing(
        lambda error, gradients_by: gradients_by(FixedGridSolver("rk4", 4000).solve)
    )
    propagator = math.exp(-0.5 + 0.01 * math.sin(2e3))
    slope = math.cos(float(y1))
    assert dy0.item() == pytest.approx(math.cos(1.0) + slope * propagator, rel=1e-5)
    assert da.item() == pytest.approx(slope * propagator, rel=1e-3)  # but for a small integral
    assert dt.isfinite().all()
    assert stats.nfe_backward == 500 + 4 * 4000


def test_other_exceptions_pass():
    def rescue(error, gradients_by):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        failing(rescue)
