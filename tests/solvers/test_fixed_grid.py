from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torchdiffeq import odeint

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
    def count_only(function, cuda_graphs=False):
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


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_is_compiled_and_how(monkeypatch, cuda_graphs):
    asked = []

    def eager(function, cuda_graphs):
        asked.append((function, cuda_graphs))
        return function

    monkeypatch.setattr(module, "compiled", eager)
    solver = FixedGridSolver("rk4", 2, compile=True, cuda_graphs=cuda_graphs)
    solution = solver.solve(OscillatorField(), (initial_state(), initial_state()), times(0.0, 1.0))
    expected = FixedGridSolver("rk4", 2).solve(
        OscillatorField(), (initial_state(), initial_state()), times(0.0, 1.0)
    )
    assert set(asked) == {(module.runge_kutta_step, cuda_graphs)}
    assert solution.stats == expected.stats == SolveStats(nfe_forward=8, accepted=2)
    torch.testing.assert_close(solution.ys, expected.ys, rtol=1e-14, atol=1e-14)
