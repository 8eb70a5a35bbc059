"""The one way from a block to its solver."""

from typing import Any

from torch import Tensor, nn

from steer_lightning.horizon import Horizon, PiecewiseField
from steer_lightning.solvers import Solution, Solver, SolveStats
from steer_lightning.solvers.step_memory import StepMemory
from steer_lightning.utils.problem import VectorField, last_of, stack


class Block(nn.Module):
    """A module that solves its vector field.

    Attributes:
        solver: Integrator in training.
        eval_solver: Integrator in evaluation; ``solver`` if ``None``.
        horizon: Where a solve ends.
        stats: Work done since its last reset; read by ``NFEMonitor``.
        step_memory: First steps of the last training batch, for a solver that remembers.
    """

    vector_field: nn.Module

    def set_up(
        self, vector_field: nn.Module, solver: Solver, eval_solver: Solver | None, horizon: Horizon
    ) -> None:
        self.vector_field = vector_field
        self.solver = solver
        self.eval_solver = eval_solver
        self.horizon = horizon
        self.stats = SolveStats()
        self.step_memory = StepMemory()

    def solve(self, vector_field: VectorField, y0: Any, t_eval: Tensor) -> Solution:
        """Solve at the images of nominal times ``t_eval`` under the warp that is in force."""
        field, times = self.horizon.warp(vector_field, t_eval, y0)
        if not isinstance(field, PiecewiseField):
            return self.solve_at(field, y0, times, nominal=t_eval)
        states = [y0]
        for piece, ends in zip(field.fields, times.unfold(0, 2, 1), strict=True):
            states.append(last_of(self.solve_at(piece, states[-1], ends, nominal=ends).ys))
        return Solution(stack(states), self.stats)

    def solve_at(
        self,
        vector_field: VectorField,
        y0: Any,
        times: Tensor,
        *,
        nominal: Tensor,
        dense: bool = False,
    ) -> Solution:
        """Solve at actual times; every solve comes through here.

        ``nominal`` are the times without STEER, between which the block remembers its steps.
        """
        solver = self.solver
        if not self.training and self.eval_solver is not None:
            solver = self.eval_solver
        remembers = self.training and solver.remembers
        first_step = self.step_memory.recall(times, nominal) if remembers else None
        solution = solver.solve(
            vector_field, y0, times, stats=self.stats, dense=dense, first_step=first_step
        )
        if remembers:
            self.step_memory.keep(solution.next_step, times, nominal)
        return solution
