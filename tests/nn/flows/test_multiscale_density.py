"""The numbers of a flow of images: inverse, log-determinant, regularisers, precision."""

import pytest
import torch
from scipy.linalg import hadamard

from steer_lightning.nn import CNF
from steer_lightning.nn.flows import cnf as module
from steer_lightning.nn.likelihood import standard_normal_log_prob
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import image_flow, lively

TIGHT = TorchdiffeqSolver(rtol=1e-8, atol=1e-8)
SHAPES = [(1, 8, 8), (1, 4, 4), (3, 4, 4)]
every_shape = pytest.mark.parametrize("event_shape", SHAPES, ids=str)
both_ends = pytest.mark.parametrize("data_at", ["t0", "t1"])


def make_flow(event_shape, **settings):
    """A flow in float64 whose blocks all act."""
    return lively(image_flow(event_shape, **{"solver": TIGHT, **settings}).double(), 0.2)


def make_exact(flow):
    for block in flow.blocks:
        block.trace_estimator = "exact"
    return flow


def images(n, event_shape):
    return torch.rand(n, *event_shape, dtype=torch.float64)


@both_ends
@every_shape
def test_flow_and_inverse_undo_each_other(event_shape, data_at):
    flow, x = make_flow(event_shape, data_at=data_at), images(2, event_shape)
    z, _ = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0.0, atol=1e-6)
    flow.logit = None  # far latents would come from beyond the unit cube
    z = torch.randn_like(z)
    torch.testing.assert_close(flow(flow.inverse(z))[0], z, rtol=0.0, atol=1e-6)


@both_ends
@every_shape
def test_log_density_is_that_of_the_whole_maps_jacobian(event_shape, data_at):
    flow, x = make_flow(event_shape, data_at=data_at), images(1, event_shape)
    copies = x.repeat(x.numel(), 1, 1, 1).requires_grad_()
    z, _ = flow(copies)
    (jacobian,) = torch.autograd.grad(z.diagonal().sum(), copies)  # one row from each copy
    log_det = torch.linalg.slogdet(jacobian.flatten(1)).logabsdet
    with torch.no_grad():
        carried = make_exact(flow).transport(x)
    torch.testing.assert_close(carried.delta_log_p[0], log_det, rtol=0.0, atol=1e-6)
    expected = standard_normal_log_prob(z[:1].detach()) + log_det
    torch.testing.assert_close(carried.log_p, expected, rtol=0.0, atol=1e-5)


@both_ends
def test_estimates_along_orthogonal_probes_average_to_the_exact_density(monkeypatch, data_at):
    flow = make_flow((1, 4, 4), min_size=2, data_at=data_at, solver=FixedGridSolver("rk4", 3))
    x = images(1, (1, 4, 4)).expand(16, 1, 4, 4)

    def probes(y, noise, generator):
        rows = torch.from_numpy(hadamard(y[0].numel())).double()  # of mean outer product one
        return rows.repeat(16 // len(rows), 1).view_as(y)

    monkeypatch.setattr(module, "trace_noise", probes)
    estimated = flow.transport(x, regularize=True)
    exact = make_exact(flow).transport(x[:1], regularize=True)
    assert len({block.event_shape for block in flow.blocks}) == 3
    assert estimated.log_p.std() > 0.01
    torch.testing.assert_close(estimated.z[:1], exact.z)
    torch.testing.assert_close(estimated.log_p.mean(), exact.log_p[0])
    torch.testing.assert_close(estimated.kinetic, exact.kinetic.expand(16))
    torch.testing.assert_close(estimated.jacobian.mean(), exact.jacobian[0])


@both_ends
def test_regularisers_are_sums_over_the_blocks(monkeypatch, data_at):
    flow, parts = make_flow((1, 8, 8), data_at=data_at, solver=FixedGridSolver()), []

    def transport(*args, **settings):
        carried = original(*args, **settings)
        parts.append(torch.stack(carried[2:]))
        return carried

    original = CNF.transport
    monkeypatch.setattr(CNF, "transport", transport)
    found = torch.stack(flow.transport(images(3, (1, 8, 8)), regularize=True)[2:])
    assert len(parts) == len(flow.blocks)
    assert found.shape == (2, 3)
    assert bool((found > 1e-3).all())
    torch.testing.assert_close(found, sum(parts))


@pytest.mark.parametrize("solver", [FixedGridSolver("rk4", 2), TorchdiffeqSolver()], ids=repr)
def test_autocast_lowers_the_networks_alone_and_only_in_training(solver):
    flow = lively(image_flow((1, 8, 8), solver=solver), 0.1)
    x = torch.rand(4, 1, 8, 8)

    def everything():
        generator = torch.Generator().manual_seed(0)
        carried = flow.transport(x, generator=generator, regularize=True)
        return *carried, flow.inverse(carried.z)

    exact = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = everything()
    assert all(part.dtype == torch.float32 for part in low)
    for a, b in zip(low, exact, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    flow.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluated = everything()
    assert all(torch.equal(a, b) for a, b in zip(evaluated, exact, strict=True))
