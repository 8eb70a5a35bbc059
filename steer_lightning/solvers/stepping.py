"""Steps from one time to another, as long as the tolerances allow, by any method."""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer_lightning.solvers.errors import NonFiniteStateError, StepSizeUnderflowError
from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import Time, error_ratio
from steer_lightning.solvers.step_size import StepController, find_first_step
from steer_lightning.solvers.steps import JoinedSteps, Steps
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.solvers.work import Work
from steer_lightning.utils.problem import VectorField, stack


class Method(ABC):
    """Takes steps of a vector field, and knows what it needs where the next one starts.

    Attributes:
        tableau: What it steps with, which has an error estimate.
        error_order: Power of the step's length that the estimate falls with.
    """

    tableau: Tableau | RosenbrockTableau
    error_order: int

    @abstractmethod
    def slope(self, t: Time, y: Any) -> Any:
        """The field where the first step starts."""

    @abstractmethod
    def step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        """State at ``end``, and the stages, of a step that may be thrown away."""

    @abstractmethod
    def accept(self, t: float, h: float, stages: list[Any]) -> "Method":
        """Hear that the last step stays, from ``t`` on; and say what takes the next one."""


class _Segment(NamedTuple):
    """The steps of one method: where the first one starts, and the stages of each."""

    tableau: Tableau | RosenbrockTableau
    first: int
    stages: list[list[Any]]


class Stepped(NamedTuple):
    """What steps gave.

    Args:
        ys: States at the times asked for.
        steps: The steps, if they were to be kept.
        next_step: Length of a good first step.
    """

    ys: Any
    steps: Steps | None
    next_step: float | None


def take_steps(
    method: Method,
    vector_field: VectorField,
    y0: Any,
    t_eval: Tensor,
    work: Work,
    tolerances: tuple[float, float],
    *,
    first_step: float | None,
    dense: bool,
) -> Stepped:
    """Step through ``t_eval``, of which the last step ends at the last time.

    Args:
        method: Takes the first step.
        vector_field: ``f(t, y)``.
        y0: State at the first time.
        t_eval: Times, shape ``(T,)``.
        work: Of this solve.
        tolerances: ``(rtol, atol)``.
        first_step: Length of the first step to try; found if not given.
        dense: Keep the steps.

    Raises:
        StepSizeUnderflowError: If a step no longer advances time.
        NonFiniteStateError: If that is because of NaN or infinity.
    """
    controlled = getattr(vector_field, "controlled_parts", None)
    # Times and lengths are numbers: a GPU is waited for once a step, to hear of its error.
    (t, *between, t1) = t_eval.tolist()
    starts, ends = _moving_ends(t_eval, t, t1)
    y, h = y0, first_step
    slope = method.slope(starts.get(t, t), y)
    if h is None:
        h = find_first_step(
            vector_field, t, t1, y, slope, method.error_order, tolerances, controlled, work
        )
    error, next_step = 0.0, None
    controller = StepController(method.error_order)
    knots, states, segments = [t], [y], [_Segment(method.tableau, 0, [])]
    while t != t1:
        t_next = _end_of_step(t, t1, h)
        work.dt = t_next - t
        if t_next == t:
            if math.isfinite(error):
                raise work.place(StepSizeUnderflowError(h, t, work.phase))
            raise work.place(NonFiniteStateError(t, work.phase))
        assert method.tableau.error is not None
        y_next, ks = method.step(starts.get(t, t), ends.get(t_next, t_next), y)
        with torch.no_grad():
            error = float(
                error_ratio(y, y_next, ks, work.dt, method.tableau.error, tolerances, controlled)
            )
        h = controller.next_step(abs(work.dt), error)
        accepted = error <= 1.0
        work.stats.count_step(work.phase, accepted=accepted)
        if not accepted:
            continue
        if next_step is None:
            next_step = controller.best_step(abs(work.dt), error)
        if not (t_next == t1 and t != knots[0]):  # the last step is as short as what is left
            work.stats.smallest_dt = min(work.stats.smallest_dt, abs(work.dt))
        knots.append(t_next)
        if dense or between:
            states.append(y_next)
            segments[-1].stages.append(ks)
        successor = method.accept(t, work.dt, ks)
        if successor is not method:
            method, controller = successor, StepController(successor.error_order)
            segments.append(_Segment(method.tableau, len(knots) - 1, []))
        t, y = t_next, y_next
    if not (dense or between):
        return Stepped(stack([y0, y]), None, next_step)
    steps = _joined(segments, _knots(knots, t_eval), states, tolerances, controlled)
    ys = _with_ends(y0, steps.at(t_eval[1:-1]), y) if between else stack([y0, y])
    return Stepped(ys, steps if dense else None, next_step)


def _joined(
    segments: list[_Segment],
    knots: Tensor,
    states: list[Any],
    tolerances: tuple[float, float],
    controlled: int | None,
) -> Steps:
    """The steps of all methods that took some."""
    pieces = []
    for tableau, first, stages in segments:
        last = first + len(stages)
        if stages:
            pieces.append(
                Steps(
                    tableau, knots[first : last + 1], states[first : last + 1], stages,
                    tolerances, controlled,
                )
            )  # fmt: skip
    return pieces[0] if len(pieces) == 1 else JoinedSteps(pieces)


def _moving_ends(t_eval: Tensor, t: float, t1: float) -> tuple[dict[float, Time], ...]:
    """The ends of the interval as tensors, by their values, where they want a gradient."""
    if not t_eval.requires_grad:
        return {}, {}
    return {t: t_eval[0]}, {t1: t_eval[-1]}


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
    if not t_eval.requires_grad:
        return knots
    t0, t1 = t_eval[:1].to(knots), t_eval[-1:].to(knots)
    return torch.cat([t0, knots[1:-1], t1])


def _with_ends(first: Any, between: Any, last: Any) -> Any:
    if isinstance(first, tuple):
        return tuple(map(_with_ends, first, between, last))
    return torch.cat([first[None], between, last[None]])
