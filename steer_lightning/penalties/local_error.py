"""Local error of the solver."""

from typing import Literal

import torch
from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, mean_rate
from steer_lightning.solvers import Solver
from steer_lightning.solvers.error_controlled import ErrorControlledSolver
from steer_lightning.solvers.runge_kutta import error_ratio, evaluate, runge_kutta_step
from steer_lightning.solvers.step_size import find_first_step
from steer_lightning.solvers.tableaus import DOPRI5
from steer_lightning.solvers.work import Work
from steer_lightning.utils.checks import check_choice, check_tolerances
from steer_lightning.utils.schedule import Schedule


class LocalError(Penalty):
    r"""Penalty on the solver's local error estimate, in units of the tolerance (ERNODE, LRNDE).

    .. math:: E = \mathrm{RMS}\left(\frac{\mathrm{err}}
        {\mathrm{atol} + \mathrm{rtol}\max(|y_n|, |y_{n+1}|)}\right), \qquad
        \operatorname{mean}_n E_n |h_n| \quad\text{or}\quad E |h|

    with the difference err of the embedded methods. Lengths of steps are constants, but stretch
    with a learned ``t1``.

    ``form="steps"`` is the mean over the accepted steps of the solve, at the solver's own
    tolerances, as in the code of ERNODE, whose paper has the sum. ``form="one_step"`` takes one
    step of dopri5 from a uniform time, as long as a first step would be, with the state and the
    length held constant: for any solver and any adjoint, with eight further evaluations. ``E``
    grows with one over the tolerance: a weight goes with a tolerance.

    The code released with LRNDE holds the slope at the start of that step constant, too. The
    gradient is then not that of ``E``: it does not vanish where the error does, and minimising it
    can raise the error.

    Args:
        weight: See :class:`Penalty`.
        form: ``"steps"`` or ``"one_step"``.
        rtol: Relative tolerance of the one step.
        atol: Absolute tolerance of the one step.
        hold_slope: Hold the slope at the start of the one step constant, as released.

    Raises:
        ValueError: If the form is unknown, a tolerance not positive or the weight negative.

    References:
        Pal et al., *Opening the Blackbox*, ICML 2021, arXiv:2105.03918, Section 3.1; Pal et al.,
        *Locally Regularized Neural Differential Equations*, ICML 2023, arXiv:2303.02262, for one
        step.
    """

    solvers = (
        "AdaptiveSolver or RosenbrockSolver (form='one_step' takes any, where samples share times)"
    )

    def __init__(
        self,
        weight: float | Schedule,
        form: Literal["steps", "one_step"] = "steps",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        hold_slope: bool = False,
    ) -> None:
        super().__init__(weight)
        check_choice("form", form, ("steps", "one_step"))
        check_tolerances(rtol, atol, None)
        self.form = form
        self.rtol = rtol
        self.atol = atol
        self.hold_slope = hold_slope
        self.needs_steps = form == "steps"
        self.n_times = 1 if form == "one_step" else 0

    def fits(self, solver: Solver) -> bool:
        return self.form == "one_step" or isinstance(solver, ErrorControlledSolver)

    def value(self, probed: Probed) -> Tensor:
        if self.form == "one_step":
            return self._of_one_step(probed)
        assert probed.steps is not None
        errors = probed.steps.error_estimates()
        lengths = torch.tensor(probed.steps.lengths).abs().to(errors) * mean_rate(probed)
        return (errors * lengths).mean()

    def _of_one_step(self, probed: Probed) -> Tensor:
        t, y = probed.t[0].detach(), probed.y[0].detach()
        if t.ndim:
            raise ValueError(
                "Expected one time for all samples with form='one_step', but got one for each, as "
                "t_start, t_end, scope='sample' or an ODE-RNN has them. Use form='steps' with an "
                "AdaptiveSolver or a RosenbrockSolver."
            )
        start = float(t)
        length = float(torch.as_tensor(probed.length).detach())
        # Some solvers evaluate at their last time, or beyond it.
        left = 1.0 - probed.shares[0] if probed.shares and probed.shares[0] < 1.0 else 1.0
        end = start + probed.direction * length * left
        tolerances = (self.rtol, self.atol)
        slope = evaluate(probed.vector_field, start, y)
        slope = slope.detach() if self.hold_slope else slope
        h = find_first_step(
            probed.vector_field, start, end, y, slope, DOPRI5.order, tolerances, None,
            Work(y, None, None, tolerances),
        )  # fmt: skip
        h = h if end > start else -h
        y_next, stages = runge_kutta_step(probed.vector_field, start, start + h, y, slope, DOPRI5)
        error = error_ratio(y, y_next, stages, h, DOPRI5.error, tolerances, None)
        return abs(h) * error
