import pytest
import torch
from torch.nn import functional as F

from steer_lightning.nn import ConvFlowField
from steer_lightning.nn.flows.conv_flow_field import ACTIVATIONS
from tests.helpers.models import lively
from tests.helpers.problems import times

T = times(0.3)[0]


def watch_inputs(layers, note):
    """Show the input of every convolution to a function."""
    for layer in layers:
        convolve = layer.convolve
        layer.convolve = lambda x, convolve=convolve: note(x) or convolve(x)


def state_and_probe():
    return torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("t", [T, times(0.3, -1.0, 2.0)], ids=["shared", "each"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("activation", ["softplus", "tanh"])
def test_field_against_its_formula_in_the_memory_format_asked_for(activation, channels_last, t):
    field = lively(ConvFlowField(2, (5, 4), activation, channels_last).double())
    y, e = state_and_probe()
    activate = {"softplus": F.softplus, "tanh": torch.tanh}[activation]
    expected, seen = y, []
    for i, layer in enumerate(field.layers):
        channel = t.reshape(-1, 1, 1, 1).expand(3, 1, 4, 5)
        inputs = torch.cat([channel, activate(expected) if i else expected], dim=1)
        expected = F.conv2d(inputs, layer.weight, layer.bias, padding=1)
    watch_inputs(
        field.layers[1:],
        lambda x: seen.append(x.is_contiguous(memory_format=torch.channels_last)),
    )
    torch.testing.assert_close(field(t, y), expected)
    torch.testing.assert_close(field.jvp(t, y, e)[0], expected)
    assert seen == [channels_last] * 4


def test_a_new_field_is_constant_in_the_state():
    field = ConvFlowField(2, (5, 4)).double()
    y, e = state_and_probe()
    value, tangent = field.jvp(T, y, e)
    bias = field.layers[-1].bias
    assert torch.equal(value, bias.view(1, -1, 1, 1).expand_as(y))
    assert not tangent.any()
    assert not field.layers[-1].weight.any()
    assert all(layer.weight.any() for layer in field.layers[:-1])


def test_autocast_lowers_every_layer_and_stays_near():
    field = lively(ConvFlowField(2, (8, 8)))
    y, e = state_and_probe().float()
    t = torch.tensor(0.3)
    exact = (field(t, y), *field.jvp(t, y, e))
    seen = []
    watch_inputs(field.layers, lambda x: seen.append(x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = (field(t, y), *field.jvp(t, y, e))
    # Activations keep the precision that the convolution before them came in.
    assert seen == 2 * [torch.float32, torch.bfloat16, torch.bfloat16]
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, atol=0.05 * float(b.detach().abs().max()), rtol=0)


def test_autocast_rests_in_the_activations(monkeypatch):
    seen = []

    def watched(function):
        def call(x):
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return function(x)

        return call

    softplus, slope = ACTIVATIONS["softplus"]
    monkeypatch.setitem(ACTIVATIONS, "softplus", (watched(softplus), watched(slope)))
    field = ConvFlowField(2, (8,))
    y, e = state_and_probe().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field(torch.tensor(0.3), y)
        field.jvp(torch.tensor(0.3), y, e)
    assert seen == 3 * [(torch.bfloat16, False)]  # a GPU's autocast would raise them to float32
