import torch

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
