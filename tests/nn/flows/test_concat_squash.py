import torch
from torch.nn.utils import prune

from steer_lightning.nn import ConcatSquashField
from steer_lightning.nn.flows.concat_squash import ConcatSquashLinear
from tests.helpers.problems import times


def test_layer_against_its_formula():
    layer = ConcatSquashLinear(2, 3).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    for t in (times(0.3)[0], times(0.3, -1.0, 2.0, 0.0)):
        column = t.reshape(-1, 1)
        gate = torch.sigmoid(column @ layer.gate.weight.T + layer.gate.bias)
        expected = (x @ layer.layer.weight.T + layer.layer.bias) * gate
        expected = expected + column @ layer.shift.weight.T
        torch.testing.assert_close(layer(t, x), expected)


def test_hooks_that_make_the_weights_of_a_gate_run():
    layer = ConcatSquashLinear(2, 3)
    for part in (layer.gate, layer.shift):
        prune.l1_unstructured(part, "weight", 1)
    layer(torch.tensor(0.5), torch.ones(4, 2)).sum().backward()
    assert layer.gate.weight_orig.grad is not None
    assert layer.shift.weight_orig.grad is not None


def test_field_is_its_layers_with_tanh_between():
    field, t = ConcatSquashField(2, (5, 5)).double(), times(0.3)[0]
    y = torch.randn(4, 2, dtype=torch.float64)
    first, middle, last = field.layers
    expected = last(t, torch.tanh(middle(t, torch.tanh(first(t, y)))))
    torch.testing.assert_close(field(t, y), expected)


def test_autocast_lowers_the_network_alone():
    field, t = ConcatSquashField(2, (16, 16)), torch.tensor(0.5)
    y, e = torch.randn(2, 4, 2)

    def everything():
        return field(t, y), *field.value_and_divergence(t, y), *field.jvp(t, y, e)

    exact = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = everything()
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)
