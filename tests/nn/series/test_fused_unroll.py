"""The unroll as one operation, against itself step by step with its gradient by autograd."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import MLPField
from steer_lightning.nn.series import ode_rnn
from tests.nn.series import test_ode_rnn
from tests.nn.series.test_ode_rnn import N_STATES, batches, directions, fields, own_grids, scopes

make = partial(test_ode_rnn.make, hidden=(8, 5), wrap=lambda field: field)


def stepwise(rnn):
    """A copy that unrolls step by step, as a field with a hook does."""
    twin = copy.deepcopy(rnn)
    twin.vector_field.register_forward_hook(lambda *args: None)
    return twin


def results(rnn, series, values, mask, lengths):
    """The unroll, and the gradients of a mean of all of it with random weights."""
    inputs = [part.clone().requires_grad_() for part in (series, values)]
    unroll = rnn(*inputs, mask, lengths)
    generator = torch.Generator().manual_seed(5)
    parts = [*unroll.final, *unroll[1:]]
    weights = [torch.randn(part.shape, generator=generator).to(part) for part in parts]
    loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
    wanted = [*inputs, *(p for p in rnn.parameters() if p.requires_grad)]
    return unroll, torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@pytest.fixture
def fused(monkeypatch):
    """Counts the unrolls that are one operation."""
    calls = []

    def counted(*args):
        calls.append(args)
        return unroll(*args)

    unroll = ode_rnn.fused_unroll
    monkeypatch.setattr(ode_rnn, "fused_unroll", counted)
    return calls


@fields
@directions
@scopes
@batches
def test_values_and_gradients_are_those_of_single_steps(
    time_dependent, reverse, scope, batch, fused
):
    rnn = make(time_dependent, reverse)
    plain = stepwise(rnn)
    if scope is not None:
        for one in (rnn, plain):
            one.horizon.perturb(EndTimeDraw("auto", key=3, scope=scope))
    found, expected = results(rnn, *batch()), results(plain, *batch())
    assert len(fused) == 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert all(bool(gradient.any()) for gradient in found[1])
    assert rnn.stats == plain.stats


def in_single_precision(rnn, series, values, mask, lengths):
    rnn.float()
    return series, values.float(), mask.float(), lengths  # times stay in double precision


def nobody_observes(rnn, series, values, mask, lengths):
    return series, values, torch.zeros_like(mask), lengths


def frozen(rnn, *batch):
    for p in (rnn.vector_field.network[2].weight, *rnn.gru.new_state.parameters()):
        p.requires_grad_(False)
    return batch


@pytest.mark.parametrize(
    "change", [in_single_precision, nobody_observes, frozen, lambda rnn, *batch: batch]
)
@pytest.mark.parametrize("hidden", [(), (4,), (8, 5)], ids=str)
def test_single_steps_are_met_in_corner_cases(change, hidden, fused):
    if change is frozen and not hidden:
        hidden = (3,)
    rnn = make(hidden=hidden)
    batch = change(rnn, *own_grids())
    found, expected = results(rnn, *batch), results(stepwise(rnn), *batch)
    assert len(fused) == 1
    tolerance = 1e-5 if change is in_single_precision else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    rnn(*batch).final.mean.sum().backward()
    assert all(p.requires_grad or p.grad is None for p in rnn.parameters())


def test_going_back_twice():
    rnn = make()
    loss, parameters = rnn(*own_grids()).final.mean.sum(), list(rnn.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), first, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    rnn = make()
    loss, parameters = rnn(*own_grids()).final.mean.sum(), list(rnn.parameters())
    with pytest.raises(RuntimeError, match="without create_graph=True: the fused unroll"):
        torch.autograd.grad(loss, parameters, create_graph=True)
    plain = stepwise(rnn)  # what the message proposes
    loss, weight = plain(*own_grids()).final.mean.sum(), plain.vector_field.network[0].weight
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert bool(torch.autograd.grad(gradient.square().sum(), weight)[0].any())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_nothing_is_kept(mode):
    rnn, batch = make(), own_grids()
    expected = rnn(*batch)
    with mode():
        unroll = rnn(*batch)
    assert unroll.final.mean.grad_fn is None
    assert expected.final.mean.grad_fn is not None
    assert torch.equal(unroll.final.mean, expected.final.mean)


class OwnField(MLPField):
    def forward(self, t, y):
        return 2.0 * super().forward(t, y)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


CHANGES = {
    "a hook on a layer": lambda rnn: rnn.gru.reset_gate[1].register_forward_hook(lambda *_: None),
    "a hook before": lambda rnn: rnn.vector_field.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda rnn: rnn.gru.register_full_backward_hook(lambda *_: None),
    "a subclass": lambda rnn: setattr(rnn, "vector_field", OwnField(N_STATES, (4,)).double()),
    "a forward of its own": lambda rnn: setattr(rnn.vector_field, "forward", lambda t, y: -y),
    "another activation": lambda rnn: rnn.vector_field.network.insert(1, nn.ReLU()),
    "one more layer": lambda rnn: rnn.gru.new_state.append(nn.Tanh()),
    "two linear layers in a row": lambda rnn: rnn.vector_field.network.__delitem__(1),
    "no bias": lambda rnn: rnn.gru.update_gate[2].register_parameter("bias", None),
    "a parametrised weight": lambda rnn: parametrize.register_parametrization(
        rnn.vector_field.network[0], "weight", Doubled()
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_known_by_its_weights_unrolls_step_by_step(change, fused):
    rnn = make()
    before = rnn(*own_grids()).final.mean
    assert len(fused) == 1
    change(rnn)
    assert rnn(*own_grids()).final.mean.shape == before.shape
    assert len(fused) == 1
    with torch.autocast("cpu", torch.bfloat16):
        make()(*own_grids())
    assert len(fused) == 1


def test_transforms_of_torch_func_go_step_by_step():
    rnn, batch = make(), own_grids()
    weights = dict(rnn.named_parameters())

    def loss(weights):
        return torch.func.functional_call(rnn, weights, batch).final.mean.sum()

    found = torch.func.grad(loss)(weights)
    expected = torch.autograd.grad(loss(weights), list(weights.values()), materialize_grads=True)
    torch.testing.assert_close(list(found.values()), list(expected))
