"""Explicit Runge-Kutta on a fixed number of steps: never fails, and costs the same each time."""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.runge_kutta import Time
from steer_lightning.solvers.steps import Steps
from steer_lightning.solvers.tableaus import FIXED
from steer_lightning.solvers.work import Stepper, Work
from steer_lightning.utils.autograd import has_gradient
from steer_lightning.utils.checks import check_choice, check_problem
from steer_lightning.utils.problem import VectorField, exact, stack


class FixedGridSolver(Solver):
    r"""Explicit Runge-Kutta with ``n_steps`` equal steps in each interval of ``t_eval``.

    Gradients are autograd's, through the steps and in the times too. Between the steps the
    solution is read from the cubic that has the states and slopes of both ends of a step, for one
    further evaluation at the end.

    Args:
        method: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"`` (the 3/8 rule).
        n_steps: Steps in each interval of ``t_eval``.
        checkpoint: Keep only the state at each step, and evaluate the step again in the backward
            pass.
        compile: Compile the step with :func:`torch.compile`; see
            :class:`~steer_lightning.solvers.AdaptiveSolver`.

    Raises:
        ValueError: If ``method`` is unknown or ``n_steps < 1``.

    References:
        Hairer, Norsett and Wanner, *Solving ODEs I*, Section II.6, for the interpolant.

    Example:
        >>> solver = FixedGridSolver(method="rk4", n_steps=8)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))
        >>> round(solution.ys[-1].item(), 4), solution.stats.nfe_forward
        (0.3679, 32)
    """

    def __init__(
        self,
        method: Literal["euler", "midpoint", "heun", "rk4"] = "rk4",
        n_steps: int = 4,
        checkpoint: bool = False,
        compile: bool = False,
    ) -> None:
        check_choice("method", method, FIXED)
        if n_steps < 1:
            raise ValueError(f"Expected `n_steps` >= 1, but got {n_steps}.")
        self.method = method
        self.n_steps = n_steps
        self.checkpoint = checkpoint
        self.compile = compile

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
        work = Work(y0, stats)
        tableau = FIXED[self.method]
        if dense:
            tableau = tableau.with_hermite_interpolant()
        step = Stepper(vector_field, tableau, work, self.compile, self.checkpoint)
        knots: Any = self._knots(t_eval)
        states, stages, slope = [y0], [], None
        # At once, as a checkpoint that repeats them may stop before the last.
        work.stats.count("accepted", len(knots) - 1)
        for start, end in pairwise(knots):
            y, ks = step(start, end, states[-1], slope)
            states.append(y)
            if dense:
                stages.append(ks)
                slope = ks[-1]
        steps = None
        if dense:
            moves = has_gradient(t_eval)
            ends = torch.stack(knots) if moves else torch.tensor(knots, dtype=torch.float64)
            steps = Steps([tableau] * len(stages), ends.to("cpu", torch.float64), states, stages)
        return Solution(stack(states[:: self.n_steps]), work.stats, steps)

    def _knots(self, t_eval: Tensor) -> list[Time]:
        """Ends of all steps; numbers, unless they have a gradient or no value in an export."""
        as_tensors = has_gradient(t_eval) or torch.compiler.is_exporting()
        times: list[Time] = list(exact(t_eval).unbind()) if as_tensors else t_eval.tolist()
        knots = [
            start + (end - start) * (j / self.n_steps) if j else start
            for start, end in pairwise(times)
            for j in range(self.n_steps)
        ]
        return [*knots, times[-1]]
