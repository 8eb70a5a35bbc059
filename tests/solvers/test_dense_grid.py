import pytest
import torch

from steer_lightning.solvers import DenseGridSolver, SolveStats
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, initial_state, times


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_it_is_read_anywhere_to_fourth_order(span):
    field, y0 = CosineField(), initial_state()
    asked = times(*span, 0.3, 1.1, 1.7)
    exact = torch.stack([field.exact(y0, span[0], t) for t in asked], dim=1)
    errors = []
    for n_steps in (8, 64):
        solution = DenseGridSolver(n_steps).solve(field, y0, times(*span))
        errors.append(float((solution.at(asked.expand(3, -1)) - exact).abs().max().detach()))
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] > 1000.0  # 8^4 in the limit


def test_gradients_are_those_of_the_solution():
    field, y0 = CosineField(), initial_state().requires_grad_()
    end = times(0.0, 0.7, 1.3).expand(3, -1)
    found = DenseGridSolver(64).solve(field, y0, times(0.0, 1.3)).at(end)
    exact = torch.stack([field.exact(y0, 0.0, t) for t in end[0]], dim=1)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), (y0, field.a)),
        torch.autograd.grad(exact.square().sum(), (y0, field.a)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_evaluations_and_steps_are_counted():
    field, stats = RecordingField(CosineField()), SolveStats()
    solution = DenseGridSolver(3).solve(field, initial_state(), times(0.0, 1.0), stats=stats)
    assert stats == SolveStats(nfe_forward=len(field.times), accepted=3)
    assert solution.stats is stats
    assert len(field.times) == 3 * 4 + 4


def test_a_float32_state_stays_one():
    solution = DenseGridSolver(2).solve(
        lambda t, y: -y.bfloat16(), torch.ones(2, 1), torch.tensor([0.0, 1.0])
    )
    assert solution.at(torch.tensor([[0.1], [1.0]])).dtype == torch.float32


def test_the_number_of_steps_is_checked():
    with pytest.raises(ValueError, match="Expected `n_steps` >= 1, but got 0"):
        DenseGridSolver(0)
    assert repr(DenseGridSolver(3)) == "DenseGridSolver(n_steps=3)"
