from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, SolveStats
from steer_lightning.solvers import work as module
from steer_lightning.solvers.tableaus import FIXED
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, OscillatorField, initial_state, times


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


def test_checkpointing_rests_where_no_gradient_is_asked():
    field = RecordingField(CosineField())
    with torch.no_grad():
        solver = FixedGridSolver("rk4", 2, checkpoint=True)
        stats = solver.solve(field, initial_state(), times(0.0, 1.0)).stats
    assert stats.nfe_forward == len(field.times) == 8


@pytest.fixture
def graphs(monkeypatch):
    """Count the graphs of compiled solves, without compiling them to machine code."""
    torch._dynamo.reset()
    counter = CompileCounter()

    @cache
    def count_only(function):
        return torch.compile(function, fullgraph=True, backend=counter)

    monkeypatch.setattr(module, "compiled", count_only)
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_no_end_time_and_no_further_block_compiles_again(graphs, scope):
    solver = FixedGridSolver("rk4", 2, compile=True)
    blocks = [ODEBlock(MLPField(2, (4,)), solver) for _ in range(3)]
    y0, ends = torch.ones(5, 2), []
    for key in range(4):
        for block in blocks:
            block.horizon.perturb(EndTimeDraw(0.5, scope=scope, key=key))
            end = block(y0)
            end.sum().backward()
        # The graph follows the end time.
        plain = ODEBlock(block.vector_field, FixedGridSolver("rk4", 2))
        plain.horizon.perturb(block.horizon.draw)
        torch.testing.assert_close(end, plain(y0))
        ends.append(end)
    assert not torch.allclose(ends[0], ends[1])
    # The first step starts at data without a gradient, the others at states with one.
    assert graphs.frame_count == 2


def test_no_interval_of_a_grid_compiles_again(graphs):
    solver = FixedGridSolver("euler", 1, compile=True)
    block, plain = (
        ODEBlock(MLPField(2, (4,)), s, horizon=GridHorizon())
        for s in (solver, FixedGridSolver("euler", 1))
    )
    plain.vector_field = block.vector_field
    for key, n_times in ((0, 6), (1, 9)):
        grid = torch.linspace(0.0, 1.0, n_times).square()
        for each in (block, plain):
            each.horizon.perturb(EndTimeDraw("auto", key=key))
        torch.testing.assert_close(block(torch.ones(5, 2), grid), plain(torch.ones(5, 2), grid))
    assert graphs.frame_count == 2  # of data without a gradient, and of states with one


def test_what_a_checkpoint_repeats_counts_as_backward():
    block, y0 = ODEBlock(MLPField(2, (4,)), FixedGridSolver("rk4", 4)), torch.ones(3, 2)
    checkpoint(block, y0, use_reentrant=False).sum().backward()
    assert block.stats == SolveStats(16, 16, accepted=4, accepted_backward=4)


def test_what_is_compiled(monkeypatch):
    asked = []

    def eager(function):
        asked.append(function)
        return function

    monkeypatch.setattr(module, "compiled", eager)
    solver = FixedGridSolver("rk4", 2, compile=True)
    solution = solver.solve(OscillatorField(), (initial_state(), initial_state()), times(0.0, 1.0))
    expected = FixedGridSolver("rk4", 2).solve(
        OscillatorField(), (initial_state(), initial_state()), times(0.0, 1.0)
    )
    assert set(asked) == {module.runge_kutta_step}
    assert solution.stats == expected.stats == SolveStats(nfe_forward=8, accepted=2)
    torch.testing.assert_close(solution.ys, expected.ys, rtol=1e-14, atol=1e-14)
