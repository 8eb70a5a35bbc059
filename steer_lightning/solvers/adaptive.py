"""Explicit Runge-Kutta with steps as long as the tolerances allow."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.errors import NonFiniteStateError, StepSizeUnderflowError
from steer_lightning.solvers.runge_kutta import Time, error_ratio, evaluate
from steer_lightning.solvers.step_size import StepController, find_first_step
from steer_lightning.solvers.steps import Steps
from steer_lightning.solvers.tableaus import ADAPTIVE
from steer_lightning.solvers.tf32 import TF32Check
from steer_lightning.solvers.work import Stepper, Work
from steer_lightning.utils.checks import check_choice, check_problem, check_tolerances
from steer_lightning.utils.problem import VectorField, stack


class AdaptiveSolver(Solver):
    r"""Explicit Runge-Kutta with an embedded error estimate.

    The last step ends at the last time; other times are read from the interpolant and cost no
    evaluation. Gradients are autograd's through the accepted steps, with their lengths held
    constant: rejected steps leave nothing behind.

    Args:
        method: ``"dopri5"``, ``"tsit5"`` (both of order 5) or ``"bosh3"`` (order 3, for loose
            tolerances).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit.
        first_step: Length of the first step to try, in units of time; ``"auto"`` finds one by
            one further evaluation; ``"previous"`` takes, in training, the one that the same block
            found good in the last batch.
        checkpoint: Keep only the ends of steps and evaluate their stages again in the backward
            pass: the same gradient in the memory of one step, for one more forward pass.
        compile: Compile the step with :func:`torch.compile`, once for all blocks of one
            structure. It needs a C++ compiler, and minutes that pay after some thousand steps.

    Raises:
        ValueError: If ``method`` is unknown, or a tolerance, ``max_nfe`` or ``first_step`` is not
            positive.

    References:
        Dormand and Prince, *A family of embedded Runge-Kutta formulae*, 1980; Tsitouras,
        *Runge-Kutta pairs of order 5(4)*, 2011; Bogacki and Shampine, *A 3(2) pair of Runge-Kutta
        formulas*, 1989.

    Example:
        >>> solver = AdaptiveSolver(rtol=1e-6, atol=1e-6)
        >>> solution = solver.solve(
        ...     lambda t, y: -y, torch.ones(2, 1), torch.tensor([0.0, 1.0]), dense=True
        ... )
        >>> solution.ys[-1].flatten()
        tensor([0.3679, 0.3679])
        >>> solution.at(torch.tensor([[0.5], [1.0]])).flatten()
        tensor([0.6065, 0.3679])
    """

    def __init__(
        self,
        method: Literal["dopri5", "tsit5", "bosh3"] = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int | None = 10_000,
        first_step: float | Literal["auto", "previous"] = "auto",
        checkpoint: bool = False,
        compile: bool = False,
    ) -> None:
        check_choice("method", method, ADAPTIVE)
        check_tolerances(rtol, atol, max_nfe)
        if isinstance(first_step, str):
            check_choice("first_step", first_step, ("auto", "previous"))
        elif not (math.isfinite(first_step) and first_step > 0):
            raise ValueError(
                f"Expected `first_step` to be finite and > 0, 'auto' or 'previous', but got "
                f"{first_step}."
            )
        self.method = method
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe
        self.first_step = first_step
        self.checkpoint = checkpoint
        self.compile = compile
        self._check_tf32 = TF32Check()

    def __repr__(self) -> str:
        return f"AdaptiveSolver(method={self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether ``first_step`` is ``"previous"``."""
        return self.first_step == "previous"

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
        check_problem(y0, t_eval)
        self._check_tf32(vector_field, y0, self.rtol)
        tolerances = (self.rtol, self.atol)
        work = Work(y0, stats, self.max_nfe, tolerances)
        tableau = ADAPTIVE[self.method]
        assert tableau.error is not None
        step = Stepper(vector_field, tableau, work, self.compile, checkpoint=self.checkpoint)
        controlled = getattr(vector_field, "controlled_parts", None)
        # Times and lengths are numbers: a GPU is waited for once a step, to hear of its error.
        (t, *between, t1) = t_eval.tolist()
        starts, ends = _moving_ends(t_eval, t, t1)
        work.spend(1, t)
        y, slope = y0, evaluate(vector_field, starts.get(t, t), y0)
        h = first_step
        if h is None and not isinstance(self.first_step, str):
            h = self.first_step
        if h is None:
            h = find_first_step(
                vector_field, t, t1, y, slope, tableau.order, tolerances, controlled, work
            )
        error, next_step = 0.0, None
        controller = StepController(tableau.order)
        knots, states, stages = [t], [y], []
        while t != t1:
            t_next = _end_of_step(t, t1, h)
            work.dt = t_next - t
            if t_next == t:
                if math.isfinite(error):
                    raise work.place(StepSizeUnderflowError(h, t, work.phase))
                raise work.place(NonFiniteStateError(t, work.phase))
            y_next, ks = step(starts.get(t, t), ends.get(t_next, t_next), y, slope)
            with torch.no_grad():
                error = float(
                    error_ratio(y, y_next, ks, work.dt, tableau.error, tolerances, controlled)
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
            t, y, slope = t_next, y_next, ks[-1]
            knots.append(t)
            if dense or between:
                states.append(y)
                stages.append(ks)
        if not (dense or between):
            return Solution(stack([y0, y]), work.stats, None, next_step)
        steps = Steps(tableau, _knots(knots, t_eval), states, stages, tolerances, controlled)
        ys = _with_ends(y0, steps.at(t_eval[1:-1]), y) if between else stack([y0, y])
        return Solution(ys, work.stats, steps if dense else None, next_step)


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
