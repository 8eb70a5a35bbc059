import pytest
import torch

from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.problems import CosineField


def test_the_evaluation_solver_takes_the_end_time_in_force():
    field, y0 = CosineField(), torch.ones(2, 1, dtype=torch.float64)
    solver = TorchdiffeqSolver(rtol=1e-8, atol=1e-8)
    block = ODEBlock(field, FixedGridSolver("euler", 1), eval_solver=solver).eval()
    block.horizon.perturb(FixedOffset(0.5))
    torch.testing.assert_close(block(y0), field.exact(y0, 0.0, 1.5), atol=1e-6, rtol=0.0)


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
