"""The integrals beside a flow's state: density, kinetic energy and norm of the Jacobian."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import CNF, ConcatSquashField, ConvFlowField, MLPField, Transport
from steer_lightning.nn.flows.divergence import DivergenceField
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.models import lively
from tests.helpers.problems import TimedLinearField, jacobians, times

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


class Doubled(ConcatSquashField):
    """A field whose own derivatives are those of half of it."""

    def forward(self, t, y):
        return 2.0 * super().forward(t, y)


class Adapted(nn.Linear):
    """A layer that adds to what its weights give."""

    def forward(self, x):
        return super().forward(x) + 0.3 * x.sum(1, keepdim=True)


def adapted(field):
    field.layers[0].layer = Adapted(3, 5)
    return field


def hooked(field):
    """A field of which one layer gives twice what its weights do."""
    layer = next(m for m in field.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    layer.register_forward_hook(lambda module, args, y: 2.0 * y)
    return field


@pytest.mark.parametrize(
    ("t", "mode"),
    [(times(0.3)[0], torch.inference_mode), (times(0.3, -1.0, 2.0), torch.enable_grad)],
)
@pytest.mark.parametrize("hutchinson", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: ConvFlowField(2, (3,)), (2, 2, 2)),
        (lambda: ConcatSquashField(3, (5,)), (3,)),
        (lambda: MLPField(3, (5,)), (3,)),
        (lambda: hooked(ConvFlowField(2, (3,), channels_last=False)), (2, 2, 2)),
        (lambda: hooked(ConcatSquashField(3, (5,))), (3,)),
        (lambda: adapted(ConcatSquashField(3, (5,))), (3,)),
        (lambda: Doubled(3, (5,)), (3,)),
    ],
)
def test_derivatives_of_all_parts(make, shape, t, hutchinson, mode):
    field, y = lively(make().double()), torch.randn(3, *shape, dtype=torch.float64)
    e = torch.randn_like(y) if hutchinson else None
    jacobian, value = jacobians(field, t, y), field(t, y)
    if hutchinson:
        tangent = torch.einsum("bij,bj->bi", jacobian, e.flatten(1))
        divergence, norm = (tangent * e.flatten(1)).sum(1), tangent.square().mean(1)
    else:
        divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        norm = jacobian.square().sum((1, 2)) / y[0].numel()
    expected = (value, divergence, 0.5 * value.flatten(1).square().mean(1), norm)
    state = (y, *torch.zeros(3, 3, dtype=torch.float64))
    with mode():
        two = DivergenceField(field, e)(t, state[:2])
        four = DivergenceField(field, e, regularize=True)(t, state)
    assert (len(two), len(four)) == (2, 4)
    for found, part in zip((*two, *four), (*expected[:2], *expected), strict=True):
        torch.testing.assert_close(found, part.detach(), rtol=1e-10, atol=1e-10)


def test_sums_over_dimensions_keep_the_states_precision_under_autocast():
    field = lively(ConvFlowField(1, (3,)))
    y, e = torch.randn(2, 3, 1, 8, 8)
    state = (y, *torch.zeros(3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, tangent = field.jvp(torch.tensor(0.3), y, e)
        found = DivergenceField(field, e, regularize=True)(torch.tensor(0.3), state)
    assert value.dtype == torch.bfloat16
    value, tangent = value.float(), tangent.float()
    expected = (
        value,
        (tangent * e).flatten(1).sum(1),
        0.5 * value.square().flatten(1).mean(1),
        tangent.square().flatten(1).mean(1),
    )
    torch.testing.assert_close(found, expected)


def integrals_by_quadrature(field, x, start, end):
    """Both regularisers of ``y' = t A y`` from ``x`` at ``start``, over the length of time."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(30))
    kinetic = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = start + (end - start) * (node + 1) / 2
        slope = t * (x @ field.flow(start, t).T @ field.matrix.T)
        kinetic = kinetic + weight / 2 * abs(end - start) * 0.5 * slope.square().mean(1)
    norm = field.matrix.square().sum() / 2 * abs(end**3 - start**3) / 3
    return kinetic, norm.expand(len(x))


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
@pytest.mark.parametrize(("t_span", "offset"), [((0.5, 1.5), 0.0), ((1.5, 0.5), 0.3)], ids=str)
@pytest.mark.parametrize("data_at", ["t0", "t1"])
def test_regularisers_and_their_gradients_by_quadrature(data_at, t_span, offset, gradient):
    solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
    flow = CNF(TimedLinearField(), (2,), solver, t_span=t_span, data_at=data_at)
    flow.horizon.perturb(FixedOffset(offset))
    x = torch.randn(4, 2, dtype=torch.float64)
    t0, t1 = t_span[0], t_span[1] + offset
    start, end = (t0, t1) if data_at == "t0" else (t1, t0)
    found = flow.transport(x, regularize=True)[2:]
    expected = integrals_by_quadrature(flow.vector_field, x, start, end)
    assert min(float(part.detach().min()) for part in found) > 0.0
    gradients = []
    for parts in (found, expected):
        loss = (torch.stack(parts) * torch.linspace(1.0, 2.0, 8).double().view(2, 4)).sum()
        gradients += torch.autograd.grad(loss, flow.vector_field.matrix)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("t", [0.8, 1.5])
def test_regularisers_from_a_time_of_the_transport_on(t):
    flow = CNF(TimedLinearField(), (2,), TorchdiffeqSolver(**TIGHT), t_span=(0.5, 1.5))
    x = torch.randn(4, 2, dtype=torch.float64)
    found = flow.transport(x, t, regularize=True)[2:]
    expected = integrals_by_quadrature(flow.vector_field, x, t, 0.5)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0.0)
    nowhere = flow.transport(x, 0.5, regularize=True)
    assert torch.equal(nowhere.z, x)
    assert not torch.stack(nowhere[1:]).any()


class Swirl(nn.Module):
    """``y' = a cos(20 t) (y2, -y1)``: no divergence, and a Jacobian that changes fast."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t, y):
        return self.a * torch.cos(20.0 * t) * torch.stack([y[:, 1], -y[:, 0]], dim=1)


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
@pytest.mark.parametrize("learn_t1", [False, True], ids=["times moved", "field warped"])
@torch.no_grad()
def test_regularisers_do_not_change_the_steps(monkeypatch, learn_t1, estimator, gradient):
    solver = TorchdiffeqSolver(rtol=1e-4, atol=1e-4, gradient=gradient)
    flow = CNF(Swirl(), (2,), solver, learn_t1=learn_t1, trace_estimator=estimator)
    flow.horizon.perturb(FixedOffset(0.3))
    x = 1e-6 * torch.randn(4, 2, dtype=torch.float64)  # small: steps need not be short for it

    def solve(regularize):
        flow.stats.reset()
        generator = torch.Generator().manual_seed(0)
        carried = flow.transport(x, generator=generator, regularize=regularize)
        return carried, dataclasses.asdict(flow.stats)

    plain, work = solve(regularize=False)
    regularised, same_work = solve(regularize=True)
    assert same_work == work
    assert all(map(torch.equal, regularised[:2], plain[:2]))
    monkeypatch.setattr(DivergenceField, "controlled_parts", None)
    _, more_work = solve(regularize=True)
    assert more_work["accepted"] > 3 * work["accepted"]


@pytest.mark.parametrize("moving", [True, False])
def test_gradients_of_the_adjoint_are_those_of_backpropagation(moving):
    field, results = ConvFlowField(1, (4,)).double(), []
    if moving:  # a new one stands still, as its last layer is zero
        lively(field)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for gradient in ("autograd", "adjoint"):
        solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
        flow = CNF(field, (1, 4, 4), solver, trace_estimator="hutchinson")
        stream = torch.Generator().manual_seed(0)
        carried = flow.transport(x, generator=stream, regularize=True)
        assert bool(carried.delta_log_p.any()) == moving
        loss = (carried.log_p + carried.kinetic + 0.1 * carried.jacobian).sum()
        results.append(torch.autograd.grad(loss, list(flow.parameters())))
    tolerance = 1e-5 if moving else 1e-3  # standing still is one long step to backpropagate
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_transports_add_up():
    first = Transport(torch.zeros(2, 3), *torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    second = Transport(torch.ones(2, 3), *torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60]]))
    total = second.after(first)
    assert total.z is second.z
    assert [part.tolist() for part in total[1:]] == [[11.0, 22.0], [33.0, 44.0], [55.0, 66.0]]
    plain = Transport(*second[:2]).after(Transport(*first[:2]))
    assert (plain.kinetic, plain.jacobian) == (None, None)
    base = -0.5 * 3 * np.log(2 * np.pi) - 0.5 * 3
    torch.testing.assert_close(total.log_p, torch.tensor([11.0, 22.0]) + base)
