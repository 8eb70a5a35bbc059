r"""The gated update of posteriors, and its gradient step by step.

The state :math:`s` is mean :math:`\mu` and standard deviation :math:`\sigma` side by side. One
network of two blocks, :math:`g`, gives the gates :math:`u` and :math:`r`, the same for both;
another, :math:`c`, gives the new state:

.. math::
    (u, r) = \operatorname{sigmoid} g(s), \quad p = c(r \odot s), \quad n = (p_\mu, |p_\sigma|),
    \quad s' = n + u \odot (s - n).

A bar marks the gradient in something, :math:`\Sigma` is the sum of a state's two parts, and
:math:`q = r \odot s`:

.. math::
    \bar p &= \bar s' \odot (1 - u) \odot (1, \operatorname{sign} p_\sigma), \qquad
    \bar q = (\partial c / \partial q)^T \bar p \\
    \bar g &= (\Sigma\, \bar s' \odot (s - n) \odot u (1 - u),\;
               \Sigma\, \bar q \odot s \odot r (1 - r)) \\
    \bar s &= \bar s' \odot u + \bar q \odot r + (\partial g / \partial s)^T \bar g.

All factors but the gradients are known after an unroll, and computed for all steps at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_lightning.nn.series.network_gradient import Network, NetworkGradient, apply_network


def gated_update(
    gates: Network, new: Network, offsets: tuple[Tensor, Tensor], state: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Update states, shape ``(N, 2 R)``.

    Args:
        gates: Network of the gates, from ``2 R`` to ``2 R`` features, transposed.
        new: Network of the new state, likewise.
        offsets: Of the two networks.
        state: Before the update.

    Returns:
        The states after the update, and what the gradient reads.
    """
    *_, hidden, gate = apply_network(gates, offsets[0], state)
    gate.sigmoid_()
    keep, reset = _parts(gate).chunk(2, dim=1)
    parts = _parts(state)
    *inputs, found = apply_network(new, offsets[1], (parts * reset).view_as(state))
    after = torch.lerp(_proper(found), parts, keep).view_as(state)
    return after, (state, hidden, gate, *inputs, found)


def _parts(state: Tensor) -> Tensor:
    """Mean and standard deviation apart, or the two gates, shape ``(N, 2, R)``."""
    n, width = state.shape
    return state.view(n, 2, width // 2)


def _proper(found: Tensor) -> Tensor:
    """The new state, whose standard deviation is not negative, shape ``(N, 2, R)``."""
    mean, std = found.chunk(2, dim=1)
    return _parts(torch.cat([mean, std.abs()], dim=1))


class UpdateGradient:
    """The gradient of updates, step by step from the last one back.

    Args:
        gates: Network of the gates.
        new: Network of the new state.
        tape: What :func:`gated_update` has left, that of all steps after each other.
        counts: Samples updated in each step.

    Attributes:
        gates: Gradient of the network of the gates.
        new: Gradient of that of the new state.
    """

    def __init__(
        self, gates: Network, new: Network, tape: Sequence[Tensor], counts: list[int]
    ) -> None:
        state, hidden, gate, *inputs, found = tape
        self.gates = NetworkGradient(gates, (state, hidden), counts)
        self.new = NetworkGradient(new, inputs, counts)
        parts, (keep, reset) = _parts(state), _parts(gate).chunk(2, dim=1)
        sign = _parts(found.sign())
        sign[:, 0] = 1.0
        to_new = (1.0 - keep) * sign
        to_keep = (parts - _proper(found)) * (keep * (1.0 - keep))
        to_reset = parts * (reset * (1.0 - reset))
        factors = (keep, reset, to_new, to_keep, to_reset)
        self._factors = list(
            zip(*(factor.split_with_sizes(counts) for factor in factors), strict=True)
        )

    def pull(self, m: int, after: Tensor) -> Tensor:
        """Gradient in the states before step ``m``'s update, from that in those after it."""
        keep, reset, to_new, to_keep, to_reset = self._factors[m]
        parts = _parts(after)
        new_offset = self.new.pull(m, (parts * to_new).view_as(after))
        reset_state = _parts(torch.mm(new_offset, self.new.network[0]))
        gate = torch.cat([(parts * to_keep).sum(1), (reset_state * to_reset).sum(1)], dim=1)
        direct = (parts * keep).addcmul_(reset_state, reset).view_as(after)
        return torch.addmm(direct, self.gates.pull(m, gate), self.gates.network[0])
