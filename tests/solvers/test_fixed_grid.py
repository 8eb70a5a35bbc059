from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torchdiffeq import odeint

from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, SolveStats
from steer_lightning.solvers import work as module
from steer_lightning.solvers.tableaus import FIXED
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, OscillatorField, initial_state, times

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
every_method = pytest.mark.parametrize("method", FIXED)


@every_method
def test_the_error_falls_with_the_order_of_the_method(method):
    field, y0 = CosineField(), initial_state()
    exact = field.exact(y0, 0.0, 1.0)
    errors = [
        float((FixedGridSolver(method, n).solve(field, y0, times(0.0, 1.0)).ys[-1] - exact).abs()
              .max().detach())
        for n in (16, 32)
    ]  # fmt: skip
    order = torch.tensor(errors[0] / errors[1]).log2().item()
    assert order == pytest.approx(ORDERS[method], abs=0.2)


@every_method
@pytest.mark.parametrize("t_eval", [(0.0, 0.5, 2.0), (2.0, 0.5, 0.0)])
def test_equals_torchdiffeq_on_the_same_grid(method, t_eval):
    field, y0, n_steps = CosineField(), initial_state(), 4
    ys = FixedGridSolver(method, n_steps).solve(field, y0, times(*t_eval)).ys
    y, theirs = y0, "heun2" if method == "heun" else method
    for i in range(2):
        grid = torch.linspace(t_eval[i], t_eval[i + 1], n_steps + 1, dtype=torch.float64)
        y = odeint(field, y, grid, method=theirs)[-1]
        torch.testing.assert_close(ys[i + 1], y, rtol=1e-12, atol=1e-12)


@every_method
def test_gradients_in_state_times_and_parameters(method):
    field = CosineField()
    del field.a

    def outputs(y0, t_eval, a):
        field.a = a
        return FixedGridSolver(method, 2).solve(field, y0, t_eval).ys

    inputs = (initial_state(), times(0.0, 0.7, 1.0), torch.tensor(0.9, dtype=torch.float64))
    assert torch.autograd.gradcheck(outputs, [x.requires_grad_() for x in inputs])


@every_method
def test_evaluations_and_steps_are_counted(method):
    field = RecordingField(CosineField())
    stats = FixedGridSolver(method, 3).solve(field, initial_state(), times(0.0, 1.0, 2.0)).stats
    assert stats == SolveStats(nfe_forward=len(field.times), accepted=6)
    assert len(field.times) == 6 * len(FIXED[method].c)


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
    y0 = torch.ones(5, 2)
    for key in range(8):
        for block in blocks:
            block.horizon.perturb(EndTimeDraw(0.5, scope=scope, key=key))
            block(y0).sum().backward()
        if key == 0:
            first = graphs.frame_count
    assert graphs.frame_count == first
    # The first step starts at data without a gradient, the others at states with one.
    assert first == 2


def test_the_compiled_graph_follows_the_end_time(graphs):
    block = ODEBlock(MLPField(2, (4,)), FixedGridSolver("rk4", 2, compile=True))
    plain = ODEBlock(block.vector_field, FixedGridSolver("rk4", 2))
    y0 = torch.ones(5, 2)
    ends, graph_counts = [], []
    for offset in (-0.5, 0.25, 0.5):
        block.horizon.perturb(FixedOffset(offset))
        plain.horizon.perturb(FixedOffset(offset))
        ends.append(block(y0))
        torch.testing.assert_close(ends[-1], plain(y0))
        assert block.stats == plain.stats
        graph_counts.append(graphs.frame_count)
    assert not torch.allclose(ends[0], ends[1])
    assert graph_counts[0] == graph_counts[-1]


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


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_compiled_to_machine_code_equals_eager(checkpoint):
    torch._dynamo.reset()
    field, y0 = MLPField(2, (4,)), torch.linspace(-1.0, 1.0, 6).reshape(3, 2)
    t_eval = torch.tensor([0.0, 1.0])
    results = []
    for settings in ({}, {"compile": True, "checkpoint": checkpoint}):
        solver = FixedGridSolver("midpoint", 1, **settings)
        y0 = y0.detach().requires_grad_()
        solution = solver.solve(field, y0, t_eval)
        assert solution.stats == SolveStats(nfe_forward=2, accepted=1)
        results.append(
            (solution.ys, *torch.autograd.grad(solution.ys.sum(), (y0, *field.parameters())))
        )
    torch.testing.assert_close(results[1], results[0])
