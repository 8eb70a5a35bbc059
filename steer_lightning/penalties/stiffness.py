"""Stiffness that the solver sees."""

from typing import Final

from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty
from steer_lightning.solvers.tableaus import DOPRI5, TSIT5

# How far the regions of stability reach along the negative real axis.
STABILITY: Final = {id(DOPRI5): 3.3066, id(TSIT5): 3.5068}


class Stiffness(Penalty):
    r"""The largest rate of change that a step has met, in units of the method's stability.

    .. math:: \max_n \frac{\mathrm{RMS}(k_7 - k_6)}{s\, \mathrm{RMS}(g_7 - g_6)}

    over the accepted steps :math:`n`, with the last two stages :math:`k` of a step, both at its
    end, the states :math:`g` that they are evaluated at, and the length :math:`s` of the region of
    stability along the negative real axis. Lengths of steps are constants.

    References:
        Pal et al., *Opening the Blackbox*, ICML 2021, arXiv:2105.03918, Section 3.2.
    """

    n_times = 0
    needs_steps = True

    def value(self, probed: Probed) -> Tensor:
        assert probed.steps is not None
        size = STABILITY.get(id(probed.steps.tableau), 1.0)
        return probed.steps.stiffness_estimates().max() / size
