"""A flow with Hutchinson's trace: whence its noise comes."""

import pytest
import torch

from steer_lightning.nn import CNF, ConcatSquashField, ConvFlowField
from steer_lightning.nn.flows import cnf as module
from steer_lightning.nn.trace import NOISES, trace_noise
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import image_flow, lively
from tests.helpers.problems import times

every_noise = pytest.mark.parametrize("noise", NOISES)
POINTS = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(3, 1, 2, 2)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps every probe that is drawn, with its stream."""
    found = []

    def watched(y, noise, generator):
        found.append((trace_noise(y, noise, generator), generator))
        return found[-1][0]

    monkeypatch.setattr(module, "trace_noise", watched)
    return found


def make_flow(noise="gaussian", solver=None):
    field = lively(ConvFlowField(1, (3,)).double())
    settings = {"trace_estimator": "hutchinson", "data_at": "t0", "noise": noise}
    return CNF(field, (1, 2, 2), solver or TorchdiffeqSolver(), **settings)


@every_noise
@pytest.mark.parametrize(
    "solver",
    [
        TorchdiffeqSolver(),
        TorchdiffeqSolver(gradient="adjoint"),
        FixedGridSolver(),
        FixedGridSolver(checkpoint=True),
    ],
    ids=repr,
)
def test_one_probe_for_a_whole_solve_and_its_backward_pass(drawn, solver, noise):
    flow = make_flow(noise, solver)
    for _ in range(2):
        flow.log_prob(POINTS).sum().backward()
    (first, _), (second, _) = drawn
    assert bool((first.abs() == 1.0).all()) == (noise == "rademacher")
    assert not torch.equal(first, second)


@every_noise
def test_the_generator_decides_and_the_global_stream_rests(drawn, noise):
    flow = make_flow(noise)
    before = torch.get_rng_state()
    ways = (
        lambda **stream: flow.log_prob(POINTS, **stream),
        lambda **stream: flow(POINTS, **stream)[1],
        lambda **stream: flow.transport(POINTS, **stream).delta_log_p,
        lambda **stream: flow.trajectories(POINTS, times(1.0, 0.0), **stream)[1][-1],
    )
    for way in ways:
        a, b, c = (way(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        expected = trace_noise(POINTS, noise, torch.Generator().manual_seed(2))
        assert torch.equal(drawn[-1][0], expected)
    assert torch.equal(torch.get_rng_state(), before)
    flow.log_prob(POINTS)  # without a generator the global stream decides
    assert not torch.equal(torch.get_rng_state(), before)


def test_every_block_draws_its_own_noise_from_one_stream(drawn):
    flow, x, generator = image_flow(), torch.rand(2, 1, 4, 4), torch.Generator()
    before = torch.get_rng_state()
    flow.log_prob(x, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    (first, one), (second, other) = drawn
    assert one is other is generator
    assert not torch.equal(first, second)


def test_an_exact_trace_and_the_way_to_the_data_draw_nothing(drawn):
    CNF(ConcatSquashField(2, (4,)), (2,)).log_prob(torch.zeros(3, 2))
    make_flow().inverse(POINTS)
    assert not drawn
