"""FFJORD's concat-squash network, with its divergence in one pass."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_lightning.utils.checks import check_widths


class ConcatSquashLinear(nn.Module):
    r"""A linear layer whose output time gates and shifts.

    .. math:: (W x + b) \odot \sigma(w_g t + b_g) + w_c t
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d_in, d_out)
        self.gate = nn.Linear(1, d_out)
        self.shift = nn.Linear(1, d_out, bias=False)

    def gate_and_shift(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and shift at ``t``, each ``(d_out,)``, or ``(B, d_out)`` for ``t`` of ``(B,)``."""
        t = t[..., None]
        if self.gate._forward_pre_hooks or self.shift._forward_pre_hooks:  # which set the weights
            return torch.sigmoid(self.gate(t)), self.shift(t)
        gate = torch.sigmoid(t * self.gate.weight[:, 0] + self.gate.bias)
        return gate, t * self.shift.weight[:, 0]

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        gate, shift = self.gate_and_shift(t)
        return torch.addcmul(shift, self.layer(x), gate)


class ConcatSquashField(nn.Module):
    r"""An MLP of concat-squash layers with tanh between them.

    Its exact divergence comes from one forward pass that carries the ``D`` tangents beside the
    value: no graph of the forward pass is needed, so it works under ``inference_mode``, and the
    backward pass of training is ordinary reverse mode.

    Args:
        dim: Features ``D`` of the state.
        hidden: Width of each hidden layer, at least one.

    Raises:
        ValueError: If a width is not positive or there is no hidden layer.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019, arXiv:1810.01367, Appendix B.

    Example:
        >>> field = ConcatSquashField(2, (16, 16))
        >>> dy, divergence = field.value_and_divergence(torch.tensor(0.5), torch.zeros(4, 2))
        >>> dy.shape, divergence.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64, 64)) -> None:
        super().__init__()
        check_widths(dim, hidden)
        if not hidden:
            raise ValueError("Expected at least one hidden layer, but got none.")
        widths = pairwise([dim, *hidden, dim])
        self.layers: Any = nn.ModuleList(ConcatSquashLinear(d_in, d) for d_in, d in widths)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            y = torch.tanh(layer(t, y))
        return last(t, y)

    def jvp(self, t: Tensor, y: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative and its change along ``probe``, each of the shape of ``y``."""
        value, tangent = y, probe
        *_, last = self.layers
        for layer in self.layers:
            gate, shift = layer.gate_and_shift(t)
            stacked = F.linear(torch.cat([value, tangent]), layer.layer.weight)
            value, tangent = stacked.chunk(2)
            value, tangent = torch.addcmul(shift, value + layer.layer.bias, gate), tangent * gate
            if layer is not last:
                value = torch.tanh(value)
                tangent = tangent * (1.0 - value.square())
        return value, tangent

    def value_and_divergence(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative, shape ``(B, D)``, and its exact divergence, shape ``(B,)``.

        The first layer's tangents are the columns of its weight, and the last layer is asked only
        for the diagonal of the Jacobian: neither costs a product of ``D`` tangents.
        """
        first, *middle, last = self.layers
        gate, shift = first.gate_and_shift(t)
        value = torch.tanh(torch.addcmul(shift, first.layer(y), gate))
        columns = first.layer.weight.T[:, None, :]  # (D, 1, H)
        tangents = columns * (gate * (1.0 - value * value))  # (D, B, H)
        for layer in middle:
            gate, shift = layer.gate_and_shift(t)
            value = torch.tanh(torch.addcmul(shift, layer.layer(value), gate))
            tangents = F.linear(tangents, layer.layer.weight) * (gate * (1.0 - value * value))
        gate, shift = last.gate_and_shift(t)
        diagonal = (tangents * last.layer.weight[:, None, :]).sum(-1).T  # (B, D)
        derivative = torch.addcmul(shift, last.layer(value), gate)
        return derivative, (diagonal * gate).sum(-1)
