"""A vector field together with the integrals that a flow needs along its paths."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.nn.fields import has_own
from steer_lightning.nn.trace import exact_jacobian, jvp


class DivergenceField(nn.Module):
    r"""The field of a state, its log-density, and the regularisers if asked for.

    The derivatives are :math:`f`, :math:`\operatorname{tr} J` and, with ``regularize``,
    :math:`\tfrac12 \operatorname{mean}(f^2)` and :math:`\operatorname{mean}((J e)^2)`, where means
    are over the ``D`` dimensions. One evaluation gives them all: of the field's own ``jvp`` or
    ``value_and_divergence`` where it has one that is still of what the field computes.

    Args:
        vector_field: ``f(t, y)``.
        probe: Hutchinson's :math:`e`, shape of ``y``, for a whole solve; without it the trace is
            exact, and so is :math:`|J|_F^2 / D`.
        regularize: Whether the state has the two regularisers as third and fourth part.

    References:
        Finlay et al., *How to train your neural ODE*, ICML 2020, arXiv:2002.02798, Section 4;
        :math:`J e` in place of :math:`J^\top e` has the same expectation.
    """

    controlled_parts = 2  # the regularisers ride along: they do not set the step size

    def __init__(
        self, vector_field: nn.Module, probe: Tensor | None = None, regularize: bool = False
    ) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.probe = probe
        self.regularize = regularize
        self._by_jvp = has_own(vector_field, "jvp")
        self._by_divergence = has_own(vector_field, "value_and_divergence")

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = state[0]
        field: Any = self.vector_field if self._by_jvp else self.vector_field.__call__
        if self.probe is not None:
            dy, tangent = jvp(field, t, y, self.probe)
            # Autocast may have lowered the network's precision: sums over dimensions keep y's.
            tangent = tangent.to(y.dtype)
            divergence = _sum(tangent * self.probe)
            squared_norm = _sum(tangent.square()) if self.regularize else None
        elif self._by_divergence and not self.regularize:
            own: Any = self.vector_field
            (dy, divergence), squared_norm = own.value_and_divergence(t, y), None
        else:
            dy, jacobian = exact_jacobian(field, t, y)
            jacobian = jacobian.to(y.dtype)
            divergence = jacobian.diagonal(dim1=0, dim2=2).sum(1)
            squared_norm = jacobian.square().sum((0, 2)) if self.regularize else None
        dy, divergence = dy.to(y.dtype), divergence.to(y.dtype)
        if squared_norm is None:
            return dy, divergence
        dim = y[0].numel()
        return dy, divergence, 0.5 * _sum(dy.square()) / dim, squared_norm / dim


def _sum(x: Tensor) -> Tensor:
    return torch.sum(x.flatten(1), dim=1)
