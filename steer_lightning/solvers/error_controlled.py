"""What solvers have in common that choose their steps by an error estimate."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.errors import NonFiniteStateError, StepSizeUnderflowError
from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import Time, error_ratio
from steer_lightning.solvers.step_size import StepController, find_first_step
from steer_lightning.solvers.steps import Steps
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.solvers.tf32 import warn_of_rounding
from steer_lightning.solvers.work import Work
from steer_lightning.utils.autograd import has_gradient
from steer_lightning.utils.checks import (
    check_choice,
    check_problem,
    check_tolerances,
    refuse_export,
)
from steer_lightning.utils.problem import VectorField, exact, parts, stack

# Steps in a row without a finite error, each a fifth of the last: shorter ones are of no use.
_HOPELESS = 25


class Method(ABC):
    """Takes steps of a vector field, and knows what it needs where the next one starts.

    Attributes:
        tableau: What it steps with, which has an error estimate.
    """

    tableau: Tableau | RosenbrockTableau

    @abstractmethod
    def slope(self, t: Time, y: Any) -> Any:
        """The field where the first step starts."""

    @abstractmethod
    def step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        """State at ``end``, and the stages, of a step that may be thrown away."""

    @abstractmethod
    def accept(self, t: float, h: float, stages: list[Any]) -> "Method":
        """Hear that the last step stays, from ``t`` on; and say what takes the next one."""


class ErrorControlledSolver(Solver):
    """A solver whose steps are as long as the tolerances allow.

    The last step ends at the last time; other times are read from the interpolant.
    """

    def __init__(
        self,
        rtol: float,
        atol: float,
        max_nfe: int | None,
        first_step: float | Literal["auto", "previous"],
    ) -> None:
        check_tolerances(rtol, atol, max_nfe)
        if isinstance(first_step, str):
            check_choice("first_step", first_step, ("auto", "previous"))
        elif not (math.isfinite(first_step) and first_step > 0):
            raise ValueError(
                f"Expected `first_step` to be finite and > 0, 'auto' or 'previous', but got "
                f"{first_step}."
            )
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe
        self.first_step = first_step
        self.remembers = first_step == "previous"

    @abstractmethod
    def _method(self, vector_field: VectorField, y0: Any, work: Work) -> Method:
        """What takes the first step of a solve."""

    def solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
        dense: bool = False,
        first_step: float | None = None,
    ) -> Solution:
        """Integrate; see :meth:`Solver.solve`."""
        refuse_export(self)
        check_problem(y0, t_eval)
        warn_of_rounding(vector_field, y0, self.rtol)
        tolerances = (self.rtol, self.atol)
        work = Work(y0, stats, self.max_nfe, tolerances)
        if first_step is None and not isinstance(self.first_step, str):
            first_step = self.first_step
        method = self._method(vector_field, y0, work)
        controlled = getattr(vector_field, "controlled_parts", None)
        # Times and lengths are numbers: a GPU is waited for once a step, to hear of its error.
        (t0, *between, t1) = t_eval.tolist()
        first, *_, last = exact(t_eval).unbind() if has_gradient(t_eval) else (t0, t1)
        t, y, h = t0, y0, first_step
        slope = method.slope(first, y)
        if h is None:
            order = method.tableau.error_order
            h = find_first_step(vector_field, t, t1, y, slope, order, tolerances, controlled, work)
        n_not_finite, next_step = 0, None
        controller = StepController(method.tableau.error_order)
        knots, states = [t], [y]
        tableaus: list[Tableau | RosenbrockTableau] = []
        stages: list[list[Any]] = []
        while t != t1:
            t_next = _end_of_step(t, t1, h)
            work.dt = t_next - t
            if n_not_finite > _HOPELESS or (t_next == t and n_not_finite):
                raise work.place(NonFiniteStateError(t, work.phase))
            if t_next == t:
                raise work.place(StepSizeUnderflowError(h, t, work.phase))
            weights = method.tableau.error
            start, end = first if t == t0 else t, last if t_next == t1 else t_next
            y_next, ks = method.step(start, end, y)
            with torch.no_grad():
                ratio = error_ratio(y, y_next, ks, work.dt, weights, tolerances, controlled)
                error = float(ratio + _nan_unless_finite(y_next))
            h = controller.next_step(abs(work.dt), error)
            n_not_finite = 0 if math.isfinite(error) else n_not_finite + 1
            accepted = error <= 1.0
            work.stats.count("accepted" if accepted else "rejected")
            if not accepted:
                continue
            if next_step is None:
                next_step = controller.best_step(abs(work.dt), error)
            if not (t_next == t1 and t != t0):  # the last step is as short as what is left
                work.stats.smallest_dt = min(work.stats.smallest_dt, abs(work.dt))
            knots.append(t_next)
            if dense or between:
                states.append(y_next)
                stages.append(ks)
                tableaus.append(method.tableau)
            successor = method.accept(t, work.dt, ks)
            if successor is not method:
                method, controller = successor, StepController(successor.tableau.error_order)
            t, y = t_next, y_next
        if not (dense or between):
            return Solution(stack([y0, y]), work.stats, None, next_step)
        ends = _knots(knots, t_eval)
        steps = Steps(tableaus, ends, states, stages, tolerances, controlled)
        ys = _with_ends(y0, steps.at(t_eval[1:-1]), y) if between else stack([y0, y])
        return Solution(ys, work.stats, steps if dense else None, next_step)


def _nan_unless_finite(y: Any) -> Tensor:
    """Zero, or NaN: errors are of some parts, and relative to an infinite state they are zero."""
    largest = [0.0 * part.abs().amax() for part in parts(y)]
    return torch.stack(largest).sum() if len(largest) > 1 else largest[0]


def _end_of_step(t: float, t1: float, h: float) -> float:
    """Where a step of length ``h`` ends: not past ``t1``, and not just before it.

    What is left for two steps is cut in halves: as many steps, of less error.
    """
    left = t1 - t
    if h >= 0.99 * abs(left):
        return t1
    return t + (0.5 * left if h > 0.5 * abs(left) else math.copysign(h, left))


def _knots(ends: list[float], t_eval: Tensor) -> Tensor:
    """Ends of all steps, with the gradient of the first and the last one."""
    knots = torch.tensor(ends, dtype=torch.float64)
    if not has_gradient(t_eval):
        return knots
    return torch.cat([t_eval[:1].to(knots), knots[1:-1], t_eval[-1:].to(knots)])


def _with_ends(first: Any, between: Any, last: Any) -> Any:
    if isinstance(first, tuple):
        return tuple(map(_with_ends, first, between, last))
    return torch.cat([first[None], between, last[None]])
