import pytest
import torch

from steer_lightning import penalize, penalty
from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import ConcatSquashField, ODEBlock
from steer_lightning.penalties import KineticEnergy
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, TorchdiffeqSolver
from tests.helpers.problems import CosineField, initial_state, times


def test_the_evaluation_solver_takes_the_end_time_in_force():
    field, y0 = CosineField(), torch.ones(2, 1, dtype=torch.float64)
    solver = TorchdiffeqSolver(rtol=1e-8, atol=1e-8)
    block = ODEBlock(field, FixedGridSolver("euler", 1), eval_solver=solver).eval()
    block.horizon.perturb(FixedOffset(0.5))
    torch.testing.assert_close(block(y0), field.exact(y0, 0.0, 1.5), atol=1e-6, rtol=0.0)


def test_precise_ends_leave_the_field_in_the_precision_of_the_state():
    block = ODEBlock(ConcatSquashField(2, (8,)), FixedGridSolver("rk4", 4))
    ends = torch.tensor([1.0, 2.0], dtype=torch.float64)
    y0 = torch.randn(2, 2)
    torch.testing.assert_close(block(y0, t_end=ends), block(y0, t_end=ends.float()))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"t_span": (0.0, 1.0)}, "`t_span`"),
        ({"eval_end_time": 0.5}, "`eval_end_time`"),
        ({"learn_t1": True, "t1_range": (0.5, 1.0)}, "`t1_range` and `learn_t1`"),
    ],
)
def test_a_horizon_has_its_own_end_times(settings, names):
    with pytest.raises(ValueError, match=f"Expected no {names} beside `horizon`, which has its"):
        ODEBlock(CosineField(), horizon=GridHorizon(), **settings)


@pytest.mark.parametrize(
    "solver",
    [
        AdaptiveSolver("dopri5", 1e-9, 1e-9),
        TorchdiffeqSolver(rtol=1e-9, atol=1e-9, gradient="adjoint"),
    ],
)
def test_gradients_in_times_of_each_sample(solver):
    field, y0 = CosineField(), initial_state()
    ends = [times(*values).requires_grad_() for values in ((0.0, 0.4, 1.0), (0.5, 1.5, 0.2))]
    block = ODEBlock(field, solver)
    with penalize(block, [KineticEnergy(1.0)], step=0):
        found = block(y0, t_start=ends[0], t_end=ends[1])
        assert float(penalty(block)) > 0.0  # though one sample runs back in time
    for part, expected in zip(
        torch.autograd.grad(found.sum(), ends),
        torch.autograd.grad(field.exact(y0, *ends).sum(), ends),
        strict=True,
    ):
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-6)


def test_end_times_beside_a_learned_one_are_refused():
    block, y0 = ODEBlock(CosineField(), learn_t1=True), initial_state()
    with pytest.raises(ValueError, match="Expected no `t_end` with a learned `t1`"):
        block(y0, t_end=times(1.0, 2.0, 3.0))
