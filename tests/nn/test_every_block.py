"""Properties of every block that solves, and of the networks made of them."""

import copy
import pickle

import pytest
import torch

from steer_lightning.horizon import GridHorizon, Horizon
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import (
    CNF,
    ODERNN,
    Augmented,
    ConcatSquashField,
    LatentDecoder,
    LatentODE,
    MLPField,
    MultiScaleCNF,
    ODEBlock,
    ODERNNForecaster,
)
from steer_lightning.nn.block import Block
from steer_lightning.nn.series import make_series
from steer_lightning.solvers import FixedGridSolver
from steer_lightning.steering.targets import find_stats
from tests.helpers.models import image_flow, lively, seeded
from tests.helpers.problems import initial_state, times

SOLVERS = (FixedGridSolver("rk4", 2), FixedGridSolver("rk4", 5))
Y, GRID = initial_state(), times(0.0, 0.4, 1.0)
IMAGES = torch.linspace(0.1, 0.9, 32, dtype=torch.float64).view(2, 1, 4, 4)
OWN = torch.stack([times(0.0, 0.3, 1.0), times(0.5, 0.9, 0.9)]), torch.tensor([3, 2])
OBSERVED = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(2, 3, 2)
SERIES = make_series(
    [OWN[0][0], OWN[0][1, :2]],
    [OBSERVED[0], OBSERVED[1, :2]],
    [torch.ones(3, 2), torch.ones(2, 2)],
)


def stream():
    return torch.Generator().manual_seed(0)


def flow(data_at, estimator):
    field = ConcatSquashField(2, (4,))
    return CNF(field, (2,), *SOLVERS, data_at=data_at, trace_estimator=estimator)


def from_flow(flow):
    ends = times(flow.base_time, flow.data_time)
    carried = flow.transport(Y, generator=stream(), regularize=True)
    return *carried, flow.sample(2, stream()), *flow.trajectories(Y, ends, generator=stream())


def from_images(flow):
    return *flow.transport(IMAGES, generator=stream(), regularize=True), flow.sample(2, stream())


def field(time_dependent=False):
    return MLPField(2, (4,), time_dependent=time_dependent)


def from_rnn(rnn):
    unroll = rnn(*OWN[:1], OBSERVED, torch.ones_like(OBSERVED), OWN[1])
    return *unroll.final, *unroll[1:]


def from_latent_ode(network):
    forecast = network(SERIES, 2, stream())
    return *forecast.posterior, *forecast[1:4]


# How a block is made, and everything that it gives.
BLOCKS = {
    "ode": (lambda: ODEBlock(field(True), SOLVERS[0], eval_solver=SOLVERS[1]), lambda b: (b(Y),)),
    "grid": (
        lambda: ODEBlock(field(True), SOLVERS[0], horizon=GridHorizon(), eval_solver=SOLVERS[1]),
        lambda b: (b(Y, GRID),),
    ),
    "flow, t0": (lambda: flow("t0", "exact"), from_flow),
    "flow, t1": (lambda: flow("t1", "hutchinson"), from_flow),
    "decoder": (lambda: LatentDecoder(field(), *SOLVERS), lambda b: (b(Y[None, :2], *OWN),)),
}
NETWORKS = {
    **BLOCKS,
    "augmented": (
        lambda: Augmented(ODEBlock(MLPField(3, (4,)), SOLVERS[0]), 1),
        lambda b: (b(Y),),
    ),
    "multi-scale": (lambda: image_flow(learn_t1=True), from_images),
    "ode-rnn": (lambda: ODERNN(field(), 2, 2, 3, 0.2), from_rnn),
    "ode-rnn, with time": (lambda: ODERNN(field(True), 2, 2, 3, 0.2, reverse=True), from_rnn),
    "latent ode": (lambda: LatentODE(2, 3, 4, n_hidden=5), from_latent_ode),
    "latent ode, rnn": (
        lambda: LatentODE(2, 3, 4, "rnn", solver=SOLVERS[0], eval_solver=SOLVERS[1]),
        from_latent_ode,
    ),
    "forecaster": (lambda: ODERNNForecaster(2, 3, 5, (6,), (6,), 0.1), lambda n: n(SERIES)[1:4]),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    make, call = NETWORKS[request.param]
    return (lambda: lively(seeded(make).double())), call


def perturb(network, draw):
    for module in network.modules():
        if isinstance(module, Horizon):
            module.perturb(draw)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_no_block_is_left_out():
    assert {type(make()) for make, _ in BLOCKS.values()} == set(Block.__subclasses__())


@pytest.mark.parametrize("given", [("dopri5",), (None, "dopri5")])
def test_a_solver_is_no_name(given):
    with pytest.raises(TypeError, match=r"a solver, such as AdaptiveSolver\(\), but got 'dopri5'"):
        ODEBlock(field(), given[0], eval_solver=given[-1])


def test_every_parameter_has_a_gradient_under_a_draw(case):
    make, call = case
    network = make()
    perturb(network, EndTimeDraw(0.3, key=1))
    sum((part.square() * torch.linspace(0.5, 1.0, part.numel()).view_as(part)).sum()
        for part in call(network)).backward()  # fmt: skip
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all() & parameter.grad.any()), name


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_a_draw_moves_a_network_alone_and_a_reset_puts_back_every_bit(case, scope):
    make, call = case
    network = make()
    names, nominal = list(network.state_dict()), call(network)
    horizons = [m for m in network.modules() if isinstance(m, Horizon)]
    for horizon in horizons:
        horizon.owner = "somebody"
    perturb(network, EndTimeDraw(0.3, key=1, scope=scope))
    moved = call(network)
    assert not same(moved, nominal)
    assert same(call(network), moved)
    assert list(network.state_dict()) == names
    assert not list(network.buffers())
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        twin = copied(network)
        assert same(call(twin), nominal)  # a copy is nobody's, and stands at the nominal end
        assert {m.owner for m in twin.modules() if isinstance(m, Horizon)} <= {None}
    assert same(call(network), moved)
    for horizon in horizons:
        horizon.reset()
    assert same(call(network), nominal)
    perturb(network, EndTimeDraw(0.0, scope=scope))
    assert same(call(network), nominal)


def test_a_state_dict_makes_the_same_network_in_every_mode(case):
    make, call = case
    network, other = make(), lively(make())
    assert not same(call(other), call(network))
    other.load_state_dict(network.state_dict())
    for training in (True, False):
        expected = call(network.train(training))
        assert same(call(other.train(training)), expected)
        with torch.inference_mode():
            found = call(other)
        if isinstance(network, MultiScaleCNF):  # a convolution without a tape is another kernel
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        else:
            assert same(found, expected)


@pytest.mark.parametrize("case", BLOCKS, indirect=True)
def test_the_evaluation_solver_serves_eval_mode_alone_and_work_is_counted(case):
    make, call = case
    accepted = []
    for training in (True, False):
        block = make().train(training)
        call(block)
        assert list(find_stats(block).values()) == [block.stats]
        assert block.stats.nfe_forward >= 4 * block.stats.accepted > 0
        accepted.append(block.stats.accepted)
    assert 2 * accepted[1] == 5 * accepted[0]
    assert f"(solver={block.solver}" in repr(block).replace("\n  ", "")
    assert block.horizon.describe() in repr(block)
    block.eval_solver, once = None, call(block.train())
    assert same(call(block.eval()), once)
