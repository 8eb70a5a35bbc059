import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from steer_lightning.nn import (
    ConcatField,
    ConvField,
    ConvFlowField,
    MLPField,
    Posterior,
    PosteriorGRU,
)
from steer_lightning.nn.fields import TimeConv2d
from tests.helpers.models import lively
from tests.helpers.problems import times

THREE_TIMES = times(0.1, 0.2, 0.3)


def with_time_as_a_channel(conv, t, y):
    """The convolution that :class:`TimeConv2d` stands for."""
    channel = t.reshape(-1, 1, 1, 1).expand(len(y), 1, *y.shape[2:])
    return F.conv2d(torch.cat([channel, y], dim=1), conv.weight, conv.bias, padding=conv.padding)


@pytest.mark.parametrize("activation", ["tanh", "softplus", "relu"])
@pytest.mark.parametrize("time_dependent", [True, False])
def test_mlp_against_its_formula(activation, time_dependent):
    field = MLPField(2, (5,), activation, time_dependent).double()
    first, last = field.network[0], field.network[2]
    y = torch.randn(3, 2, dtype=torch.float64)
    inputs = torch.stack([THREE_TIMES, *y.T], dim=1) if time_dependent else y
    activate = {"tanh": torch.tanh, "softplus": F.softplus, "relu": F.relu}[activation]
    expected = activate(inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(field(THREE_TIMES, y), expected)
    assert field.autonomous != time_dependent


def test_mlp_initial_weights():
    field = MLPField(1, (500, 500), init_std=0.1)
    layers = [layer for layer in field.network if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(500, 2), (500, 500), (1, 500)]
    assert layers[1].weight.std().item() == pytest.approx(0.1, rel=0.01)
    assert not any(layer.bias.any() for layer in layers)


def test_concat_field_against_its_formula():
    field = ConcatField(2, (5,)).double()
    y = expected = torch.randn(3, 2, dtype=torch.float64)
    for layer in field.layers:
        of_time = torch.outer(THREE_TIMES, layer.weight[:, 0])
        expected = torch.tanh(of_time + expected @ layer.weight[:, 1:].T + layer.bias)
    torch.testing.assert_close(field(THREE_TIMES, y), expected)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("t", [times(0.7)[0], times(0.7, -2.0, 0.0)])
def test_time_conv_equals_the_concatenated_form_in_all_its_parts(kernel_size, t):
    conv = TimeConv2d(2, 4, kernel_size).double()
    y = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    expected, of_time = (with_time_as_a_channel(conv, t, part) for part in (y, 0.0 * y))
    offset = conv.offset(t, y)
    assert len(offset) == (len(t) if t.ndim else 1)
    torch.testing.assert_close(conv(t, y), expected)
    torch.testing.assert_close(offset.expand(3, -1, -1, -1), of_time)
    torch.testing.assert_close(conv.convolve(y), expected - of_time)
    if kernel_size == 1:
        found = conv.at_each_pixel(t, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected)


def test_time_keeps_its_precision_under_autocast():
    conv, y = TimeConv2d(1, 1, 1), torch.zeros(1, 1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(1024.0)
        conv.bias.fill_(-512.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for image in (y, y.bfloat16()):
            offset = conv.offset(torch.tensor([0.5, 0.5001]), image)
            assert offset.dtype == image.dtype
            # In bfloat16 0.5 and 0.5001 are one number.
            expected = torch.tensor([0.0, 0.1024])
            torch.testing.assert_close(offset.flatten().float(), expected, atol=0, rtol=1e-2)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("t", [times(0.4)[0], times(0.4, -1.0)])
def test_conv_field_and_its_derivatives_against_its_formula(channels_last, t):
    field, t = ConvField(2, 3, channels_last).double(), t.requires_grad_()
    y = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def formula(t, y):
        y = with_time_as_a_channel(field.conv1, t, y).relu()
        y = with_time_as_a_channel(field.conv2, t, y).relu()
        return with_time_as_a_channel(field.conv3, t, y)

    results = []
    for way in (field, formula):
        dy = way(t, y)
        gradients = torch.autograd.grad(dy.square().sum(), [t, y, *field.parameters()])
        results.append((dy, *torch.func.jvp(way, (t, y), (torch.ones_like(t), y)), *gradients))
    torch.testing.assert_close(*results)
    assert results[0][0].is_contiguous()


class Doubled(TimeConv2d):
    def forward(self, t, y):
        return 2.0 * super().forward(t, y)


def test_a_layer_of_somebody_elses_is_called():
    fields = [ConvField(1, 4, channels_last) for channels_last in (True, False)]
    for field in fields:
        field.conv2 = Doubled(4, 4, 3)
    fields[1].load_state_dict(fields[0].state_dict())
    t, y = torch.tensor(0.5), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(fields[0](t, y), fields[1](t, y))


@pytest.mark.parametrize("field_class", [ConvField, ConvFlowField])
def test_convolutions_under_vmap(field_class):
    field = field_class(1, 4) if field_class is ConvField else lively(field_class(1, (4,)))
    y = torch.rand(3, 2, 1, 4, 4)
    found = torch.func.vmap(lambda part: field(torch.tensor(0.5), part))(y)
    torch.testing.assert_close(found, torch.stack([field(torch.tensor(0.5), part) for part in y]))


def test_layers_that_are_pruned_train():
    field, y = ConvField(1, 4), torch.rand(2, 1, 4, 4)
    for layer in (field.conv1, field.conv2, field.conv3):
        prune.l1_unstructured(layer, "weight", 0.5)
    gates = PosteriorGRU(2, 3, 4)
    for network in (gates.update_gate, gates.reset_gate, gates.new_state):
        prune.l1_unstructured(network[0], "weight", 0.5)
    parameters = [*field.parameters(), *gates.parameters()]
    optimizer, posterior = torch.optim.SGD(parameters, 0.1), Posterior(*torch.ones(2, 5, 3))
    for _ in range(2):
        optimizer.zero_grad()
        updated = gates(posterior, torch.ones(5, 2))
        (field(torch.tensor(0.5), y).sum() + updated.mean.sum() + updated.std.sum()).backward()
        optimizer.step()
    for layer in (field.conv1, gates.update_gate[0]):
        assert layer.weight_orig.grad.any()
        assert not layer.weight_orig.grad[layer.weight_mask == 0].any()


def test_conv_field_under_autocast():
    y, t = torch.rand(2, 1, 4, 4), torch.tensor([0.5, 0.7])
    field = ConvField(1, 8)
    for time in (t, t[0]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dy = field(time, y)
        torch.testing.assert_close(dy.float(), field(time, y), atol=0.02, rtol=0.0)
