import copy
import shutil
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import CNF, CompiledField, ConcatSquashField, MLPField, ODEBlock
from steer_lightning.nn.flows.divergence import DivergenceField
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, RosenbrockSolver
from steer_lightning.utils.compiling import compiled
from steer_lightning.utils.problem import parts
from tests.helpers.models import image_flow, lively
from tests.helpers.problems import initial_state, times
from tests.helpers.stiff import Swing


@pytest.fixture
def graphs(monkeypatch):
    """Compile with a backend that runs graphs as they are, and count them."""
    found = []

    def backend(graph, example_inputs):
        found.append(graph)
        return graph.forward

    def counting(function, **settings):
        return original(function, backend=backend, **settings)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", counting)
    torch._dynamo.reset()
    compiled.cache_clear()
    yield found
    compiled.cache_clear()
    torch._dynamo.reset()


def test_one_compilation_for_all_fields_times_weights_and_modes(graphs):
    fields = [MLPField(2, (8,)) for _ in range(3)]
    y = torch.randn(4, 2, requires_grad=True)
    for step in range(6):
        for field in fields:
            t, inputs = torch.tensor(0.1 * step), (y, *field.parameters())
            found, expected = (
                torch.autograd.grad(way(t, y).square().sum(), inputs)
                for way in (CompiledField(field), field)
            )
            torch.testing.assert_close(found, expected)
            with torch.no_grad():
                for parameter in field.parameters():
                    parameter.add_(0.01)
            field.train(step % 2 == 0)
    assert len(graphs) == 1
    assert not CompiledField(fields[0]).autonomous
    assert CompiledField(MLPField(2, (4,), time_dependent=False)).autonomous


@pytest.mark.parametrize(
    "solver", [AdaptiveSolver, FixedGridSolver, partial(RosenbrockSolver, "rosenbrock23")]
)
def test_a_compiled_field_is_a_part_of_a_compiled_step(graphs, solver):
    field, y0 = MLPField(2, (4,)), torch.randn(3, 2)
    inside = ODEBlock(CompiledField(field), solver(compile=True))
    torch.testing.assert_close(inside(y0), ODEBlock(field, solver())(y0))


def test_a_flow_takes_the_field_itself():
    with pytest.raises(ValueError, match=r"got a CompiledField, .* Use compile=True\."):
        CNF(CompiledField(ConcatSquashField(2, (4,))), (2,))


@pytest.mark.parametrize(
    "solver",
    [
        *(AdaptiveSolver(method, compile=True) for method in ("dopri5", "tsit5", "bosh3")),
        *(FixedGridSolver(method, 2, compile=True) for method in ("heun", "rk4")),
        *(RosenbrockSolver(method, compile=True) for method in ("rodas5p", "rosenbrock23")),
    ],
    ids=repr,
)
def test_a_step_is_compiled_once_for_all_batch_sizes_and_step_sizes(graphs, solver):
    block, counts = ODEBlock(MLPField(2, (8,)), solver), []
    for n in (4, 7, 2, 5):
        y0 = torch.randn(n, 2)
        t_eval = torch.tensor([0.0, 0.1 * n])
        y = block.train()(y0, t_eval)
        y.sum().backward()
        torch.testing.assert_close(block.eval()(y0, t_eval), y)
        counts.append(len(graphs))
    assert counts == 4 * [1 + isinstance(solver, RosenbrockSolver)]
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    assert not block(torch.ones(3, 2)).requires_grad


class KnownSwing(Swing):
    def jacobian(self, t, y):
        return torch.func.vmap(torch.func.jacrev(self.forward, 1), (None, 0))(t, y)


class SwingOfParts(Swing):
    def forward(self, t, y):
        return super().forward(t, torch.cat(y, dim=1)).split(1, dim=1)


@pytest.mark.parametrize(
    "field",
    [Swing(), Swing(timed=False), KnownSwing(), KnownSwing(timed=False), SwingOfParts()],
    ids=["timed", "autonomous", "timed with a Jacobian", "with a Jacobian", "of parts"],
)
def test_a_compiled_implicit_step_is_the_one_that_is_not(graphs, field):
    y0, results, counts = initial_state().requires_grad_(), [], []
    state = y0.split(1, dim=1) if isinstance(field, SwingOfParts) else y0
    for compile in (False, True):
        solver = RosenbrockSolver("rodas4", 1e-6, 1e-6, compile=compile)
        solution = solver.solve(field, state, times(0.0, 0.4, 1.0))
        end = torch.cat([part[1:] for part in parts(solution.ys)], dim=-1)
        gradients = torch.autograd.grad(end.square().sum(), (y0, *field.parameters()))
        results.append((end, *gradients))
        counts.append(solution.stats)
    torch.testing.assert_close(results[1], results[0])
    assert counts[1] == counts[0]
    assert graphs


def test_an_implicit_step_is_not_compiled_under_a_checkpoint(graphs):
    with pytest.raises(ValueError, match="Expected checkpoint=False with compile=True"):
        RosenbrockSolver(compile=True, checkpoint=True)
    y0, results = initial_state().requires_grad_(), []
    for settings in ({}, {"compile": True}):
        block = ODEBlock(Swing(), RosenbrockSolver(**settings))
        y = torch.utils.checkpoint.checkpoint(block, y0, use_reentrant=False)
        results.append(torch.autograd.grad(y.square().sum(), y0))
    torch.testing.assert_close(results[1], results[0])
    assert not graphs


def test_states_that_cannot_have_a_gradient_are_left_as_they_are(graphs):
    block = ODEBlock(MLPField(2, (4,)), FixedGridSolver(compile=True))
    plain = ODEBlock(block.vector_field, FixedGridSolver())
    with torch.inference_mode():
        y0 = torch.randn(3, 2)
    torch.testing.assert_close(block(y0), plain(y0))
    with forward_ad.dual_level(), pytest.raises(torch._dynamo.exc.Unsupported, match="tangent"):
        block(forward_ad.make_dual(torch.randn(3, 2), torch.ones(3, 2)))


def test_flow_compiles_its_divergence_once(graphs):
    plain = CNF(ConcatSquashField(2, (8,)), (2,))
    flow = CNF(plain.vector_field, (2,), compile=True)
    x = torch.randn(4, 2)
    torch.testing.assert_close(flow.log_prob(x), plain.log_prob(x))
    assert len(graphs) == 1
    for key in range(10):
        for one in (plain, flow):
            one.horizon.perturb(EndTimeDraw(b=0.5, key=key))
        torch.testing.assert_close(flow.log_prob(x), plain.log_prob(x))
    assert len(graphs) == 1


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
    assert len(graphs) == 1


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize(
    ("regularize", "settings"),
    [
        (True, {"compile": True}),
        (False, {"solver": FixedGridSolver("midpoint", 2, compile=True)}),
        (True, {"solver": FixedGridSolver("midpoint", 2, compile=True, checkpoint=True)}),
    ],
    ids=["field", "step", "step, checkpointed"],
)
def test_blocks_of_one_shape_share_a_compilation_whatever_noise_and_end_time(
    graphs, regularize, settings, scope
):
    settings = {"solver": FixedGridSolver("midpoint", 2), "n_blocks": 3, **settings}
    flow = lively(image_flow((1, 4, 4), **settings))
    plain = image_flow((1, 4, 4), **{**settings, "compile": False})
    for block in plain.blocks:
        block.solver = FixedGridSolver("midpoint", 2)
    plain.load_state_dict(flow.state_dict())
    x, counts = torch.rand(2, 1, 4, 4), []
    for key in range(3):
        found = []
        for model in (plain, flow):
            for i, block in enumerate(model.blocks):
                block.horizon.perturb(EndTimeDraw(b=0.5, scope=scope, key=10 * key + i))
            generator = torch.Generator().manual_seed(key)
            carried = model.transport(x, generator=generator, regularize=regularize)
            loss = carried.log_p.sum() + sum(e.sum() for e in carried[2:] if e is not None)
            found.append((carried.log_p, *torch.autograd.grad(loss, list(model.parameters()))))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
        counts.append(len(graphs))
        stats = [[block.stats for block in model.blocks] for model in (plain, flow)]
        assert [s.nfe_forward for s in stats[0]] == [s.nfe_forward for s in stats[1]]
    assert 1 <= counts[0] <= 3  # a state with and one without a gradient
    assert counts == 3 * counts[:1]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
@pytest.mark.parametrize(
    ("solver", "field", "carried"),
    [
        (
            FixedGridSolver("midpoint", 1, compile=True, checkpoint=True),
            DivergenceField(ConcatSquashField(2, (4,))),
            (torch.ones(4),),
        ),
        (RosenbrockSolver("rosenbrock23", 0.1, 0.1, compile=True), MLPField(2, (4,)), ()),
    ],
    ids=["explicit, with checkpoints", "implicit"],
)
def test_compiled_for_real(solver, field, carried):
    torch._dynamo.reset()
    compiled.cache_clear()
    plain = copy.copy(solver)
    plain.compile = plain.checkpoint = False
    y0, results, counts = torch.randn(4, 2, requires_grad=True), [], []
    for each in (plain, solver):
        state = (y0, *carried) if carried else y0
        solution = each.solve(field, state, torch.tensor([0.0, 1.0]))
        counts.append(copy.copy(solution.stats))
        loss = sum(part[-1].square().sum() for part in parts(solution.ys))
        found = torch.autograd.grad(loss, (y0, *field.parameters()))
        results.append((*parts(solution.ys), *found))
    torch.testing.assert_close(results[1], results[0])
    assert counts[1] == counts[0]
    assert counts[0].accepted > 0


def test_data_dependent_branches_are_refused(graphs):
    class Branching(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y if y.sum() > 0 else -y

    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent"):
        CompiledField(Branching())(torch.tensor(0.0), torch.ones(2, 1))


@pytest.mark.parametrize("solver_class", [AdaptiveSolver, FixedGridSolver])
def test_a_block_with_checkpoints_can_be_compiled_whole(solver_class):
    block, y0 = ODEBlock(MLPField(2, (4,)), solver_class(checkpoint=True)), torch.randn(3, 2)
    torch.testing.assert_close(torch.compile(block, backend="eager")(y0), block(y0))


def test_a_jacobian_of_the_fields_own_is_passed_on():
    class Own(MLPField):
        def jacobian(self, t, y):
            return y

    assert CompiledField(Own(2, (4,))).jacobian(None, 3.0) == 3.0
    assert not hasattr(CompiledField(MLPField(2, (4,))), "jacobian")
