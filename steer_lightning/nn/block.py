"""The one way from a block to its solver."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.horizon import Horizon
from steer_lightning.nn.probes import Probing
from steer_lightning.solvers import Solution, Solver, SolveStats
from steer_lightning.solvers.step_memory import StepMemory
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.checks import check_problem
from steer_lightning.utils.problem import VectorField, last_of, stack


class Block(nn.Module):
    """A module that solves its vector field.

    Attributes:
        solver: Integrator in training.
        eval_solver: Integrator in evaluation; ``solver`` if ``None``.
        horizon: Where a solve ends.
        stats: Work done since its last reset; read by ``NFEMonitor``.
        step_memory: First steps of the last training batch, for a solver that remembers.
        probing: What penalties ask of training solves, if any do.
    """

    vector_field: nn.Module
    integrals_beside = False  # a state is a tuple whose further parts are integrals along the way

    def set_up(
        self, vector_field: nn.Module, solver: Solver, eval_solver: Solver | None, horizon: Horizon
    ) -> None:
        for given in (solver, eval_solver):
            if not (given is None or isinstance(given, Solver)):
                raise TypeError(f"Expected a solver, such as AdaptiveSolver(), but got {given!r}.")
        self.vector_field = vector_field
        self.solver = solver
        self.eval_solver = eval_solver
        self.horizon = horizon
        self.stats = SolveStats()
        self.step_memory = StepMemory()
        self.probing: Probing | None = None

    def extra_repr(self) -> str:
        return f"solver={self.solver}"

    def solve(self, vector_field: VectorField, y0: Any, t_eval: Tensor) -> Solution:
        """Solve at the images of nominal times ``t_eval`` under the warp that is in force."""
        field, times = self.horizon.warp(vector_field, t_eval, y0)
        if not isinstance(field, list):
            return self.solve_at(field, y0, times, nominal=t_eval)
        states = [y0]
        for piece, ends in zip(field, times.unfold(0, 2, 1), strict=True):
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
        first_step, remembers = None, self.training and solver.remembers
        if remembers:
            if in_backward():
                raise RuntimeError(
                    "Expected no torch.utils.checkpoint around a block with "
                    "first_step='previous': what it repeats in the backward pass would take other "
                    "steps. Use first_step='auto', or the solver's own checkpoint=True."
                )
            check_problem(y0, nominal)
            first_step = self.step_memory.recall(times, nominal)
        options: dict[str, Any] = {"stats": self.stats, "first_step": first_step}
        probing = self.probing
        if probing is None or not (self.training and torch.is_grad_enabled()):
            solution = solver.solve(vector_field, y0, times, dense=dense, **options)
        else:
            if isinstance(y0, tuple) and not self.integrals_beside:
                raise TypeError(
                    "Expected a state of one tensor under a penalty, but got a tuple. Put its "
                    "parts side by side."
                )
            probes = probing.times(times)
            dense = dense or probing.steps
            solution, ys = solver.solve_probed(
                vector_field, y0, times, probes, dense=dense, **options
            )
            probing.see(self.vector_field, vector_field, times, probes, ys, solution)
        if remembers:
            self.step_memory.keep(solution.next_step, times, nominal)
        return solution
