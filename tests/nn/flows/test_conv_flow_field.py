import re

import pytest
import torch
from torch.nn import functional as F

from steer_lightning.nn import ConvFlowField
from steer_lightning.nn.flows.conv_flow_field import ACTIVATIONS
from tests.helpers.models import lively

TIMES = [torch.tensor(0.3).double(), torch.tensor([0.3, -1.0, 2.0]).double()]
SETTINGS = [
    {"activation": activation, "channels_last": channels_last}
    for activation in ("softplus", "tanh")
    for channels_last in (True, False)
]
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)
both_times = pytest.mark.parametrize("t", TIMES, ids=["shared", "each"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_field(**settings):
    return lively(ConvFlowField(2, (5, 4), **settings).double())


def watch_inputs(layers, note):
    """Show the input of every convolution to a function."""
    for layer in layers:
        convolve = layer.convolve
        layer.convolve = lambda x, convolve=convolve: note(x) or convolve(x)


def state_and_probe():
    return torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)


@both_times
@every_setting
def test_field_against_its_formula(settings, t):
    field = make_field(**settings)
    y, _ = state_and_probe()
    activate = {"softplus": F.softplus, "tanh": torch.tanh}[settings["activation"]]
    expected = y
    for i, layer in enumerate(field.layers):
        channel = t.reshape(-1, 1, 1, 1).expand(3, 1, 4, 5)
        inputs = torch.cat([channel, activate(expected) if i else expected], dim=1)
        expected = F.conv2d(inputs, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(field(t, y), expected)


def test_the_memory_format_is_kept_within_and_changes_no_number():
    y, e = state_and_probe()
    weights, seen, results = make_field().state_dict(), [], []
    for channels_last in (True, False):
        field = make_field(channels_last=channels_last)
        field.load_state_dict(weights)
        watch_inputs(
            field.layers[1:],
            lambda x: seen.append(x.is_contiguous(memory_format=torch.channels_last)),
        )
        results.append((field(TIMES[0], y), *field.jvp(TIMES[0], y, e)))
    assert seen == [True] * 4 + [False] * 4
    torch.testing.assert_close(results[0], results[1])


def test_a_new_field_is_constant_in_the_state():
    field = ConvFlowField(2, (5, 4)).double()
    y, e = state_and_probe()
    value, tangent = field.jvp(TIMES[0], y, e)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "Expected positive layer widths, but got 0 and (64, 64, 64)"),
        (
            {"channels": 1, "hidden": (8, 0)},
            "Expected positive layer widths, but got 1 and (8, 0)",
        ),
        ({"channels": 1, "hidden": ()}, "Expected at least one hidden layer, but got none"),
        ({"channels": 1, "activation": "softpls"}, "got 'softpls'. Did you mean 'softplus'?"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConvFlowField(**arguments)
