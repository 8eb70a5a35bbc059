import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steer_lightning.nn import ConcatField, ConvField, MLPField, ODEBlock
from steer_lightning.nn.fields import TimeConv2d


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("activation", ["tanh", "softplus", "relu"])
@pytest.mark.parametrize("time_dependent", [True, False])
def test_mlp_against_its_formula(activation, time_dependent):
    field = MLPField(2, (5,), activation, time_dependent).double()
    first, last = field.network[0], field.network[2]
    y, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3]).double()
    inputs = torch.stack([t, y[:, 0], y[:, 1]], dim=1) if time_dependent else y
    activate = {"tanh": torch.tanh, "softplus": F.softplus, "relu": F.relu}[activation]
    expected = activate(inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(field(t, y), expected)
    assert field.autonomous != time_dependent


def test_mlp_initial_weights():
    field = MLPField(1, (500, 500), init_std=0.1)
    weights = [layer.weight for layer in field.network if isinstance(layer, nn.Linear)]
    biases = [layer.bias for layer in field.network if isinstance(layer, nn.Linear)]
    assert [tuple(w.shape) for w in weights] == [(500, 2), (500, 500), (1, 500)]
    assert weights[1].std().item() == pytest.approx(0.1, rel=0.01)
    assert all(not bias.any() for bias in biases)


def test_concat_field_against_its_formula():
    field = ConcatField(2, (5,)).double()
    (first, last), y = field.layers, torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.2, 0.3]).double()

    def layer(linear, y):
        of_time = torch.outer(t, linear.weight[:, 0])
        return torch.tanh(of_time + y @ linear.weight[:, 1:].T + linear.bias)

    torch.testing.assert_close(field(t, y), layer(last, layer(first, y)))


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("t", [torch.tensor(0.7), torch.tensor([0.7, -2.0, 0.0])])
def test_time_conv_equals_the_concatenated_form_in_all_its_parts(kernel_size, t):
    conv, t = TimeConv2d(2, 4, kernel_size).double(), t.double()
    y = torch.randn(3, 2, 5, 6, dtype=torch.float64)

    def concatenated(t, y):
        channel = t.reshape(-1, 1, 1, 1).expand(3, 1, 5, 6)
        inputs = torch.cat([channel, y], dim=1)
        return F.conv2d(inputs, conv.weight, conv.bias, padding=kernel_size // 2)

    torch.testing.assert_close(conv(t, y), concatenated(t, y))
    offset = conv.offset(t, y)
    assert len(offset) == (len(t) if t.ndim else 1)
    torch.testing.assert_close(offset.expand(3, -1, -1, -1), concatenated(t, 0.0 * y))
    torch.testing.assert_close(conv.convolve(y), concatenated(t, y) - concatenated(t, 0.0 * y))
    if kernel_size == 1:
        found = conv.at_each_pixel(t, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, conv(t, y))


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
def test_conv_field_against_its_formula(channels_last):
    field = ConvField(1, 3, channels_last).double()
    y, t = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor(0.4).double()
    expected = y
    for conv, padding in ((field.conv1, 0), (field.conv2, 1), (field.conv3, 0)):
        inputs = torch.cat([t.expand(2, 1, 4, 4), expected], dim=1)
        expected = F.conv2d(inputs, conv.weight, conv.bias, padding=padding)
        if conv is not field.conv3:
            expected = expected.relu()
    torch.testing.assert_close(field(t, y), expected)


@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.tensor([0.4, -1.0])])
def test_memory_formats_of_a_conv_field_agree(t):
    field, t = ConvField(2, 3).double(), t.double().requires_grad_()
    y = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def derivatives():
        dy = field(t, y)
        first = torch.autograd.grad(dy.square().sum(), [t, y, *field.parameters()])
        along = torch.func.jvp(field, (t, y), (torch.ones_like(t), y))
        jacobian = torch.func.vmap(lambda e: torch.func.jvp(lambda y: field(t, y), (y,), (e,))[1])
        return [dy, *first, *along, jacobian(torch.stack([y, y**2]))]

    last = derivatives()
    assert last[0].is_contiguous()
    field.channels_last = False
    for a, b in zip(last, derivatives(), strict=True):
        torch.testing.assert_close(a, b)


def test_conv_field_under_autocast():
    y, t = torch.rand(2, 1, 4, 4), torch.tensor([0.5, 0.7])
    field = ConvField(1, 8)
    for time in (t, t[0]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dy = field(time, y)
        torch.testing.assert_close(dy.float(), field(time, y), atol=0.02, rtol=0.0)


def test_parameters_of_the_papers_classifier():
    field = ConvField(1, 92)
    assert count_parameters(field) == 77_466
    model = nn.Sequential(ODEBlock(field), nn.Flatten(), nn.Linear(784, 10))
    assert count_parameters(model) == 85_316


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPField(0), "Expected positive layer widths, but got 0 and (64, 64)"),
        (lambda: MLPField(2, (8, 0)), "Expected positive layer widths, but got 2 and (8, 0)"),
        (lambda: ConvField(1, 0), "Expected positive layer widths, but got 1 and (0,)"),
        (lambda: ConvField(0), "Expected positive layer widths, but got 0 and (92,)"),
        (lambda: ConcatField(0), "Expected positive layer widths, but got 0 and (100,)"),
        (lambda: ConcatField(2, (8,), "rely"), "but got 'rely'. Did you mean 'relu'?"),
        (lambda: MLPField(2, (8,), "tanj"), "but got 'tanj'. Did you mean 'tanh'?"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
