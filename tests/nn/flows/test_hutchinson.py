"""A flow with Hutchinson's trace: whence its noise comes, and what its estimates average to."""

import pytest
import torch
from torch import nn

from steer_lightning.nn import CNF, ConcatSquashField, ConvFlowField
from steer_lightning.nn.trace import NOISES, trace_noise
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import lively

every_noise = pytest.mark.parametrize("noise", NOISES)


class WatchProbes(nn.Module):
    """Keeps the probe of every evaluation."""

    def __init__(self, vector_field):
        super().__init__()
        self.vector_field = vector_field
        self.seen = []

    def forward(self, t, y):
        return self.vector_field(t, y)

    def jvp(self, t, y, probe):
        self.seen.append(probe)
        return self.vector_field.jvp(t, y, probe)


def make_flow(solver=None, **settings):
    torch.manual_seed(0)
    field = WatchProbes(lively(ConvFlowField(1, (3,)).double()))
    settings = {"trace_estimator": "hutchinson", "data_at": "t0", **settings}
    return CNF(field, (1, 2, 2), solver or TorchdiffeqSolver(), **settings)


def points(n=3):
    return torch.linspace(-1.0, 1.0, 4 * n, dtype=torch.float64).view(n, 1, 2, 2)


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
def test_one_probe_for_a_whole_solve_and_its_backward_pass(solver, noise):
    flow = make_flow(solver, noise=noise)
    probes = []
    for _ in range(2):
        flow.vector_field.seen.clear()
        flow.log_prob(points()).sum().backward()
        assert len(flow.vector_field.seen) >= 7
        probes.append(flow.vector_field.seen[0])
        assert all(torch.equal(e, probes[-1]) for e in flow.vector_field.seen)
        assert bool((probes[-1].abs() == 1.0).all()) == (noise == "rademacher")
    assert not torch.equal(*probes)


@every_noise
def test_the_generator_decides_and_the_global_stream_rests(noise):
    flow = make_flow(noise=noise)
    before = torch.get_rng_state()
    ways = (
        lambda generator: flow.log_prob(points(), generator=generator),
        lambda generator: flow(points(), generator=generator)[1],
        lambda generator: flow.transport(points(), generator=generator).delta_log_p,
        lambda generator: flow.trajectories(
            points(), torch.tensor([1.0, 0.0], dtype=torch.float64), generator=generator
        )[1][-1],
    )
    for way in ways:
        a, b, c = (way(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        expected = trace_noise(points(), noise, torch.Generator().manual_seed(2))
        assert torch.equal(flow.vector_field.seen[-1], expected)
    assert torch.equal(torch.get_rng_state(), before)
    flow.log_prob(points())  # without a generator the global stream decides
    assert not torch.equal(torch.get_rng_state(), before)


def test_an_exact_trace_and_the_way_to_the_data_draw_nothing():
    flow = CNF(ConcatSquashField(2, (4,)), (2,))
    images = make_flow()
    before = torch.get_rng_state()
    flow.log_prob(torch.zeros(3, 2))
    images.inverse(points())
    assert torch.equal(torch.get_rng_state(), before)
    assert not images.vector_field.seen


@every_noise
def test_estimates_are_unbiased(noise):
    n = 4000
    x = points(1).expand(n, 1, 2, 2)
    flow = make_flow(FixedGridSolver("rk4", 2), noise=noise)
    with torch.no_grad():
        estimates = flow.log_prob(x, generator=torch.Generator().manual_seed(0))
        flow.trace_estimator = "exact"
        exact = flow.log_prob(x[:1])
    error = estimates.std() / n**0.5
    assert error > 1e-4
    assert (estimates.mean() - exact).abs() < 3 * error
