"""The convolutional field of image flows, with its tangent in the same pass."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_lightning.nn.fields import TimeConv2d
from steer_lightning.utils.autograd import transforms_active
from steer_lightning.utils.checks import check_choice, check_widths

# Each activation with its derivative at the same point.
ACTIVATIONS: Final[dict[str, tuple[Callable[[Tensor], Tensor], ...]]] = {
    "softplus": (F.softplus, torch.sigmoid),
    "tanh": (torch.tanh, lambda x: 1.0 - torch.tanh(x).square()),
}


class ConvFlowField(nn.Module):
    r"""3x3 convolutions with time as a channel of each, the last one's weight initially zero.

    :meth:`jvp` stacks state and probe along the batch, so that each layer is one convolution of
    twice the batch; bias and time enter the half of the state alone. With it the gradient of a
    flow's loss is ordinary reverse mode, once.

    Args:
        channels: Channels ``C`` of the state.
        hidden: Channels of each hidden layer, at least one.
        activation: ``"softplus"`` or ``"tanh"``.
        channels_last: Keep hidden layers in channels-last memory format: the same numbers, faster
            on CPUs and on GPUs with tensor cores.

    Raises:
        ValueError: If a width is not positive, there is no hidden layer, or ``activation`` is
            unknown.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019, Appendix B; Finlay et al., *How to train your neural
        ODE*, ICML 2020, for the zero initialisation.

    Example:
        >>> field = ConvFlowField(channels=1, hidden=(8, 8))
        >>> y, e = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
        >>> dy, tangent = field.jvp(torch.tensor(0.5), y, e)
        >>> dy.shape, tangent.shape
        (torch.Size([2, 1, 4, 4]), torch.Size([2, 1, 4, 4]))
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: Literal["softplus", "tanh"] = "softplus",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_widths(channels, hidden)
        if not hidden:
            raise ValueError("Expected at least one hidden layer, but got none.")
        self.activation = activation
        self.channels_last = channels_last
        widths = pairwise([channels, *hidden, channels])
        layers = [TimeConv2d(c_in, c_out, 3) for c_in, c_out in widths]
        nn.init.zeros_(layers[-1].weight)
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        activate, _ = ACTIVATIONS[self.activation]
        *hidden, last = self.layers
        for layer in hidden:
            y = self._arranged(layer(t, y))
            with _own_precision(y):
                y = activate(y)
        return last(t, y)

    def jvp(self, t: Tensor, y: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative and its change along ``probe``, each of the shape of ``y``."""
        activate, derivative = ACTIVATIONS[self.activation]
        *hidden, last = self.layers
        stacked = torch.cat([y, probe])
        for layer in hidden:
            value, tangent = self._arranged(layer.convolve(stacked)).chunk(2)
            value = value + layer.offset(t, value)
            with _own_precision(value):
                stacked = torch.cat([activate(value), derivative(value) * tangent])
        value, tangent = last.convolve(stacked).chunk(2)
        return value + last.offset(t, value), tangent

    def _arranged(self, y: Tensor) -> Tensor:
        if not self.channels_last or transforms_active():  # vmap knows no memory formats
            return y
        return y.contiguous(memory_format=torch.channels_last)


def _own_precision(y: Tensor) -> torch.autocast:
    """Keep what autocast would raise to float32 in the precision of ``y``: half the memory."""
    return torch.autocast(y.device.type, enabled=False)
