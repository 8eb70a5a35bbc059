"""Vector fields for vectors and images; ``t`` is ``()`` or one time for each sample, ``(B,)``."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_lightning.utils.autograd import transforms_active
from steer_lightning.utils.checks import check_choice, check_widths

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def feedforward(
    widths: Sequence[int],
    activation: Literal["tanh", "softplus", "relu"] = "tanh",
    init_std: float | None = 0.1,
) -> nn.Sequential:
    """Linear layers with an activation between them; zero biases if ``init_std`` is given."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        linear = nn.Linear(d_in, d_out)
        if init_std is not None:
            nn.init.normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class MLPField(nn.Module):
    r"""A multilayer perceptron :math:`f(t, y)` with time as one more input.

    Args:
        dim: Features ``D`` of the state.
        hidden: Width of each hidden layer.
        activation: ``"tanh"``, ``"softplus"`` or ``"relu"``.
        time_dependent: Feed ``t`` to the network; without it the field is autonomous.
        init_std: Standard deviation of normal initial weights, with zero biases; torch's own
            initialisation if not given.

    Raises:
        ValueError: If ``activation`` is unknown or a width is not positive.

    Example:
        >>> field = MLPField(2, (16, 16))
        >>> field(torch.tensor(0.5), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        activation: Literal["tanh", "softplus", "relu"] = "tanh",
        time_dependent: bool = True,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_widths(dim, hidden)
        self.autonomous = not time_dependent
        self.network = feedforward([dim + time_dependent, *hidden, dim], activation, init_std)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if not self.autonomous:
            y = torch.cat([t.to(y).reshape(-1, 1).expand(y.shape[0], 1), y], dim=1)
        return self.network(y)


class ConcatField(nn.Module):
    r"""A multilayer perceptron with time in front of the input of each layer.

    An activation follows each layer, the last one too: with tanh no component of the state
    changes faster than 1.

    Args:
        dim: Features ``D`` of the state.
        hidden: Width of each hidden layer.
        activation: ``"tanh"``, ``"softplus"`` or ``"relu"``.

    Raises:
        ValueError: If ``activation`` is unknown or a width is not positive.

    References:
        The MNIST model of Pal et al., *Opening the Blackbox*, ICML 2021, arXiv:2105.03918.

    Example:
        >>> field = ConcatField(784)
        >>> [tuple(layer.weight.shape) for layer in field.layers]
        [(100, 785), (784, 101)]
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (100,),
        activation: Literal["tanh", "softplus", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_widths(dim, hidden)
        widths = [dim, *hidden, dim]
        self.layers = nn.ModuleList(nn.Linear(d + 1, d_out) for d, d_out in pairwise(widths))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.to(y).reshape(-1, 1).expand(y.shape[0], 1)  # not len: a number in an export
        for layer in self.layers:
            y = self.activation(layer(torch.cat([t, y], dim=1)))
        return y


def autonomous_field(dim: int, hidden: Sequence[int]) -> MLPField:
    """The field of latent ODEs: tanh, no time, normal weights of std 0.1, zero biases."""
    return MLPField(dim, hidden, "tanh", time_dependent=False, init_std=0.1)


def is_changed(module: nn.Module) -> bool:
    """Whether a hook, or a ``forward`` of its own, comes before a module's weights."""
    own = vars(module)
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return "forward" in own or any(own[name] for name in hooks)


def has_own(field: nn.Module, name: str) -> bool:
    """Whether a field's method of that name derives what a call of the field computes.

    It does not know of hooks on the field or its parts, such as ``torch.nn.utils.spectral_norm``
    sets, nor of the ``forward`` of a subclass or, in a field of this library, of somebody else's
    layers in the place of its own.
    """
    if not hasattr(field, name) or any(map(is_changed, field.modules())):
        return False
    owner = next(base for base in type(field).__mro__ if vars(base).keys() & {"forward", name})
    if name not in vars(owner):
        return False
    ours = owner.__module__.startswith("steer_lightning.")
    return not ours or all(is_known(part) for part in field.modules() if part is not field)


def is_known(module: nn.Module) -> bool:
    """Whether a module is of a class of torch's, parametrized ones too, or of this library."""
    return type(module).__module__.startswith(("torch.nn.", "steer_lightning."))


class TimeConv2d(nn.Conv2d):
    """A convolution of an image with time as one more channel, in front.

    The time channel is constant, so that its share is ``t`` times a fixed map: nothing is
    concatenated. The weight has the layout of the concatenated form. Height and width stay.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels + 1, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve ``y``, shape ``(B, C, H, W)``, at time ``t``."""
        y = self.convolve(y)
        return y + self.offset(t, y)

    def convolve(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.weight[:, 1:], padding=self.padding)

    def offset(self, t: Tensor, y: Tensor) -> Tensor:
        """The part of time and bias, in their own precision until the sum, also under autocast."""
        assert self.bias is not None
        ones = self.weight.new_ones(1, 1, *y.shape[-2:])
        per_unit_time = F.conv2d(ones, self.weight[:, :1], padding=self.padding)
        offset = self.bias.view(-1, 1, 1) + t.to(ones).reshape(-1, 1, 1, 1) * per_unit_time
        return offset.to(y.dtype)

    def at_each_pixel(self, t: Tensor, y: Tensor) -> Tensor:
        """A 1x1 convolution of images with channels as the last axis, ``(B, H, W, C)``.

        It is one matrix product, in which time is a part of the bias.
        """
        assert self.bias is not None
        weight = self.weight[:, :, 0, 0]
        bias = self.bias + t.to(weight)[..., None] * weight[:, 0]
        if t.ndim == 0:
            return F.linear(y, weight[:, 1:], bias)
        product = F.linear(y, weight[:, 1:])
        return product + bias[:, None, None].to(product.dtype)


class ConvField(nn.Module):
    r"""The convolutional field of Augmented Neural ODEs: 1x1, 3x3, 1x1, ReLU, time in each.

    Args:
        channels: Channels ``C`` of the state.
        filters: Filters of the hidden layers.
        channels_last: Keep hidden layers in channels-last memory format, where a 1x1 convolution
            is a matrix product: the same numbers but for rounding, faster on CPUs. Compiled, the
            field leaves the format to the compiler.

    Raises:
        ValueError: If a width is not positive.

    References:
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681.

    Example:
        >>> field = ConvField(channels=1, filters=92)
        >>> sum(p.numel() for p in field.parameters())
        77466
    """

    def __init__(self, channels: int, filters: int = 92, channels_last: bool = True) -> None:
        super().__init__()
        check_widths(channels, (filters,))
        self.channels_last = channels_last
        self.conv1 = TimeConv2d(channels, filters, 1)
        self.conv2 = TimeConv2d(filters, filters, 3)
        self.conv3 = TimeConv2d(filters, channels, 1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        # A compiler chooses memory formats by itself, and does it worse after us.
        simple = not self.channels_last or torch.compiler.is_compiling() or transforms_active()
        if simple or any(is_changed(part) or not is_known(part) for part in self.children()):
            y = self.conv1(t, y).relu()
            y = self.conv2(t, y).relu()
            return self.conv3(t, y)
        # In place, as all these pixels are written once and need not be kept: a solve is bound by
        # memory wherever it is not by the 3x3 convolution.
        y = self.conv1.at_each_pixel(t, y.permute(0, 2, 3, 1)).relu_().permute(0, 3, 1, 2)
        offset = self.conv2.offset(t, y).contiguous(memory_format=torch.channels_last)
        y = self.conv2.convolve(y).add_(offset).relu_()
        y = self.conv3.at_each_pixel(t, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y.contiguous()
