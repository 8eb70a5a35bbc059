import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, SolveStats
from steer_lightning.solvers.tableaus import FIXED
from tests.helpers.problems import CosineField, initial_state, times


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("t_eval", [(0.0, 0.5, 2.0), (2.0, 0.5, 0.0)])
def test_equals_torchdiffeq_on_the_same_grid(method, t_eval):
    field, y0, n_steps = CosineField(), initial_state(), 4
    ys = FixedGridSolver(method, n_steps).solve(field, y0, times(*t_eval)).ys
    y, theirs = y0, "heun2" if method == "heun" else method
    for i in range(2):
        grid = torch.linspace(t_eval[i], t_eval[i + 1], n_steps + 1, dtype=torch.float64)
        y = odeint(field, y, grid, method=theirs)[-1]
        torch.testing.assert_close(ys[i + 1], y, rtol=1e-12, atol=1e-12)


def test_what_a_checkpoint_repeats_counts_as_backward():
    block, y0 = ODEBlock(MLPField(2, (4,)), FixedGridSolver("rk4", 4)), torch.ones(3, 2)
    checkpoint(block, y0, use_reentrant=False).sum().backward()
    assert block.stats == SolveStats(16, 16, accepted=4, accepted_backward=4)
