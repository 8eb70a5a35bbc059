import torch

from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.problems import CosineField


def test_the_evaluation_solver_serves_eval_mode_alone():
    field, y0 = CosineField(), torch.ones(2, 1, dtype=torch.float64)
    solver, eval_solver = FixedGridSolver("rk4", 2), TorchdiffeqSolver(rtol=1e-8, atol=1e-8)
    block = ODEBlock(field, solver, eval_solver=eval_solver)
    assert torch.equal(block.train()(y0), ODEBlock(field, solver)(y0))
    block.stats.reset()
    assert torch.equal(block.eval()(y0), ODEBlock(field, eval_solver)(y0))
    assert block.stats.nfe_forward > 8  # its work is counted too
    torch.testing.assert_close(block(y0), field.exact(y0, 0.0, 1.0), atol=1e-6, rtol=0.0)


def test_without_an_evaluation_solver_eval_mode_changes_nothing():
    block, y0 = ODEBlock(CosineField(), FixedGridSolver("euler", 3)), torch.ones(2, 1)
    assert torch.equal(block.train()(y0), block.eval()(y0))


def test_the_evaluation_solver_takes_the_end_time_in_force():
    field, y0 = CosineField(), torch.ones(2, 1, dtype=torch.float64)
    solver = TorchdiffeqSolver(rtol=1e-8, atol=1e-8)
    block = ODEBlock(field, FixedGridSolver("euler", 1), eval_solver=solver).eval()
    block.horizon.perturb(FixedOffset(0.5))
    torch.testing.assert_close(block(y0), field.exact(y0, 0.0, 1.5), atol=1e-6, rtol=0.0)
