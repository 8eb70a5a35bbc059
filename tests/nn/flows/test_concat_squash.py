import re

import pytest
import torch

from steer_lightning.nn import ConcatSquashField
from steer_lightning.nn.flows.concat_squash import ConcatSquashLinear

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
