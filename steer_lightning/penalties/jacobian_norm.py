"""Norm of the Jacobian."""

import torch
from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, integrated_square


class JacobianNorm(Penalty):
    r"""Penalty on the squared norm of the field's Jacobian, integrated over time (RNODE).

    .. math:: \int \operatorname{mean}_d \big(e^\top \partial_y f\big)^2\, dt, \qquad
        e \sim \mathcal{N}(0, I)

    by its value at one uniform time and for one :math:`e`, times the length of the span: an
    unbiased estimate of :math:`\int \lVert \partial_y f \rVert_F^2 / d\; dt`. Nothing is held
    constant.

    References:
        Finlay et al., *How to train your neural ODE*, ICML 2020, arXiv:2002.02798, Section 3.
    """

    def value(self, probed: Probed) -> Tensor:
        t, y = probed.t[0], probed.y[0]
        e = torch.empty_like(y).normal_(generator=probed.generator)
        product = torch.func.vjp(lambda x: probed.vector_field(t, x), y)[1](e)[0]
        return integrated_square(product, probed)
