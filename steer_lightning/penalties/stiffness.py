"""Stiffness that the solver sees."""

from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, mean_rate
from steer_lightning.solvers import AdaptiveSolver, Solver
from steer_lightning.solvers.tableaus import ADAPTIVE, Tableau


class Stiffness(Penalty):
    r"""Penalty on the largest stiffness estimate of the accepted steps (SRNODE).

    .. math:: \max_n \frac{\mathrm{RMS}(k_7 - k_6)}{s\, \mathrm{RMS}(g_7 - g_6)}

    over the accepted steps :math:`n`, with the last two stages :math:`k` of a step, both at its
    end, the states :math:`g` that they are evaluated at, and the length :math:`s` of the region of
    stability along the negative real axis. Lengths of steps are constants, but
    stretch with a learned ``t1``.

    References:
        Pal et al., *Opening the Blackbox*, ICML 2021, arXiv:2105.03918, Section 3.2.
    """

    n_times = 0
    needs_steps = True

    solvers = "AdaptiveSolver with dopri5 or tsit5 to the end (stiff is not 'switch')"

    def fits(self, solver: Solver) -> bool:
        return (
            isinstance(solver, AdaptiveSolver)
            and ADAPTIVE[solver.method].stable > 0.0
            and solver.stiff != "switch"
        )

    def value(self, probed: Probed) -> Tensor:
        assert probed.steps is not None
        tableau = probed.steps.tableaus[0]  # that of all steps
        assert isinstance(tableau, Tableau)
        return probed.steps.stiffness_estimates().max() / mean_rate(probed) / tableau.stable
