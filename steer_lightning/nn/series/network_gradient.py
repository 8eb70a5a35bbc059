r"""A tanh network applied step by step, and its gradient with one product for each weight.

With :math:`x_0` the input, :math:`a_1 = W_0 x_0 + o`, :math:`x_i = \tanh a_i`,
:math:`a_{i+1} = W_i x_i + b_i` and the last :math:`a` the output, gradients marked by a bar are

.. math::
    \bar a_i = W_i^T \bar a_{i+1} \odot (1 - x_i^2), \quad \bar o = \bar a_1, \quad
    \bar W_i = \sum \bar a_{i+1} x_i^T, \quad \bar b_i = \sum \bar a_{i+1}.

The sums are over rows and steps: all steps together are one product, where autograd has one for
each step. The offset :math:`o`, one for each row, holds what the first layer reads beside the
input, its bias included.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Network = tuple[Tensor, ...]
"""``(W_0, W_1, b_1, W_2, b_2, ...)``."""


def transposed(network: Network) -> Network:
    """The network with its weights as :func:`apply_network` reads them."""
    return tuple(part.t() if part.ndim == 2 else part for part in network)


def apply_network(network: Network, offset: Tensor, x: Tensor) -> list[Tensor]:
    """Inputs of all layers, the first of them ``x``, shape ``(B, D)``; at last the output.

    Nothing is recorded by autograd.

    Args:
        network: Weights, transposed once for all steps, and biases.
        offset: Of the first layer, shape ``(B, H)``.
        x: Input.
    """
    found = [x]
    x = torch.addmm(offset, x, network[0])
    for weight, bias in zip(network[1::2], network[2::2], strict=True):
        found.append(x.tanh_())
        x = torch.addmm(bias, x, weight)
    return [*found, x]


class NetworkGradient:
    """The gradient of a network, step by step from the last one back.

    Args:
        network: Weights and biases.
        inputs: Inputs of each layer, those of all steps after each other.
        counts: Rows of each step.
    """

    def __init__(
        self, network: Sequence[Tensor], inputs: Sequence[Tensor], counts: list[int]
    ) -> None:
        self.network = network
        self.inputs = inputs
        derivatives = [(1.0 - x.square()).split_with_sizes(counts) for x in reversed(inputs[1:])]
        self._derivatives = list(zip(*derivatives, strict=True)) or [()] * len(counts)
        self._found: list[list[Tensor]] = []

    def pull(self, m: int, output: Tensor) -> Tensor:
        """Gradient in the offset of step ``m``, from that in its output.

        Times ``W_0`` it is that in the input, for the caller to add to what else there is.
        """
        found = [output]
        for weight, derivative in zip(self.network[-2:0:-2], self._derivatives[m], strict=True):
            output = torch.mm(output, weight).mul_(derivative)
            found.append(output)
        self._found.append(found)
        return output

    def gradients(self, needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradient in the offsets of all steps, and those in the network which are needed."""
        outputs = [torch.cat(steps[::-1]) for steps in zip(*self._found, strict=True)][::-1]
        network: list[Tensor | None] = [None] * len(self.network)
        for i in (i for i, needed in enumerate(needs) if needed):
            layer = (i + 1) // 2
            is_weight = i == 0 or i % 2 == 1
            output = outputs[layer]
            network[i] = output.t() @ self.inputs[layer] if is_weight else output.sum(0)
        return [outputs[0], *network]
