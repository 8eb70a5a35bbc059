import re

import pytest
import torch

from steer_lightning.nn import ConcatSquashField
from steer_lightning.nn.flows.concat_squash import ConcatSquashLinear
from steer_lightning.nn.trace import exact_divergence, jvp

TIMES = [torch.tensor(0.3).double(), torch.tensor([0.3, -1.0, 2.0, 0.0]).double()]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_layer_against_its_formula():
    layer = ConcatSquashLinear(2, 3).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    for t in TIMES:
        column = t.reshape(-1, 1)
        gate = torch.sigmoid(column @ layer.gate.weight.T + layer.gate.bias)
        expected = (x @ layer.layer.weight.T + layer.layer.bias) * gate
        expected = expected + column @ layer.shift.weight.T
        torch.testing.assert_close(layer(t, x), expected)


def test_field_is_its_layers_with_tanh_between():
    field = ConcatSquashField(2, (5, 5)).double()
    y, t = torch.randn(4, 2, dtype=torch.float64), TIMES[0]
    first, middle, last = field.layers
    expected = last(t, torch.tanh(middle(t, torch.tanh(first(t, y)))))
    torch.testing.assert_close(field(t, y), expected)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("dim", "hidden"), [(1, (8,)), (2, (8, 8)), (3, (7, 6, 5))])
def test_divergence_against_the_jacobian(dim, hidden, t):
    field = ConcatSquashField(dim, hidden).double()
    y = torch.randn(4, dim, dtype=torch.float64)
    value, divergence = field.value_and_divergence(t, y)
    torch.testing.assert_close(value, field(t, y))
    for i in range(4):
        t_i = t if t.ndim == 0 else t[i]
        jacobian = torch.autograd.functional.jacobian(
            lambda point, t_i=t_i: field(t_i, point[None])[0], y[i]
        )
        torch.testing.assert_close(divergence[i], jacobian.trace())


def test_gradient_of_the_divergence_against_forward_mode():
    field = ConcatSquashField(2, (6, 6)).double()
    y = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inputs = (y, t, *field.parameters())
    for i in (0, 1):  # value, divergence
        own = field.value_and_divergence(t, y)[i].square().sum()
        reference = exact_divergence(field.forward, t, y)[i].square().sum()
        for a, b in zip(
            torch.autograd.grad(own, inputs, allow_unused=True, materialize_grads=True),
            torch.autograd.grad(reference, inputs, allow_unused=True, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_value_tangent_and_their_gradients_against_forward_mode(hidden, t):
    field = ConcatSquashField(3, hidden).double()
    y, e = torch.randn(2, 4, 3, dtype=torch.float64)
    t, y = t.clone().requires_grad_(), y.requires_grad_()
    results = []
    for vector_field in (field, field.forward):
        value, tangent = jvp(vector_field, t, y, e)
        loss = (value.square() * tangent.sin()).sum()
        gradients = torch.autograd.grad(loss, (t, y, *field.parameters()))
        results.append((value, tangent, *gradients))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_divergence_under_inference_mode():
    field = ConcatSquashField(2, (8,))
    y, t = torch.randn(4, 2), torch.tensor(0.5)
    expected = field.value_and_divergence(t, y)
    with torch.inference_mode():
        found = field.value_and_divergence(t, y)
    assert torch.equal(found[0], expected[0].detach())
    assert torch.equal(found[1], expected[1].detach())


def test_autocast_lowers_the_network_alone():
    field = ConcatSquashField(2, (16, 16))
    y, t = torch.randn(4, 2), torch.tensor(0.5)
    e = torch.randn(4, 2)
    exact, tangent = field.value_and_divergence(t, y), field.jvp(t, y, e)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = (field(t, y), *field.value_and_divergence(t, y), *field.jvp(t, y, e))
    assert [part.dtype for part in low] == [torch.float32] * 5
    for a, b in zip(low, (exact[0], *exact, *tangent), strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, ()), "Expected at least one hidden layer, but got none"),
        ((0, (8,)), "Expected positive layer widths, but got 0 and (8,)"),
        ((2, (8, -1)), "Expected positive layer widths, but got 2 and (8, -1)"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConcatSquashField(*arguments)
