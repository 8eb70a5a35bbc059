"""Kinetic energy."""

from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, integrated_square


class KineticEnergy(Penalty):
    r"""Penalty on the squared speed of the trajectory, integrated over time (RNODE).

    .. math:: \int \tfrac12 \operatorname{mean}_d f(t, y(t))^2\, dt

    by its value at one uniform time, times the length of the span: unbiased. Nothing is held
    constant.

    References:
        Finlay et al., *How to train your neural ODE*, ICML 2020, arXiv:2002.02798, Section 3.
    """

    def value(self, probed: Probed) -> Tensor:
        return 0.5 * integrated_square(probed.vector_field(probed.t[0], probed.y[0]), probed)
