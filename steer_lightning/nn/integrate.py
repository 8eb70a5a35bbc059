"""The one way from a block to its solver."""

from typing import Any, Protocol

from torch import Tensor

from steer_lightning.horizon import Horizon, PiecewiseField
from steer_lightning.solvers import Solution, Solver, SolveStats
from steer_lightning.solvers.runge_kutta import stack
from steer_lightning.solvers.step_memory import StepMemory
from steer_lightning.utils.problem import VectorField


class Block(Protocol):
    """What a module has that solves."""

    training: bool

    @property
    def solver(self) -> Solver:
        """Integrator, in training."""

    @property
    def eval_solver(self) -> Solver | None:
        """Integrator in evaluation; ``solver`` if ``None``."""

    @property
    def horizon(self) -> Horizon:
        """Where a solve ends."""

    @property
    def stats(self) -> SolveStats:
        """Work done."""

    @property
    def step_memory(self) -> StepMemory:
        """First steps of the last training batch, for a solver that remembers."""


def solve_horizon(block: Block, vector_field: VectorField, y0: Any, t_eval: Tensor) -> Solution:
    """Solve with the end times of the block's horizon in force.

    Args:
        block: Whose solver, horizon and counts to use.
        vector_field: ``f(t, y)``.
        y0: State at the first time.
        t_eval: Nominal times, shape ``(T,)``.

    Returns:
        The solution at the images of ``t_eval`` under the horizon's warp.
    """
    field, times = block.horizon.warp(vector_field, t_eval, y0)
    if not isinstance(field, PiecewiseField):
        return integrate(block, field, y0, times, nominal=t_eval)
    states = [y0]
    for piece, ends in zip(field.fields, times.unfold(0, 2, 1), strict=True):
        ys = integrate(block, piece, states[-1], ends, nominal=ends).ys
        states.append(_last(ys))
    return Solution(stack(states), block.stats)


def integrate(
    block: Block,
    vector_field: VectorField,
    y0: Any,
    times: Tensor,
    *,
    nominal: Tensor,
    dense: bool = False,
) -> Solution:
    """Solve with the block's solver, as it trains or evaluates; every solve comes through here.

    Args:
        block: Whose solver and counts to use.
        vector_field: ``f(t, y)``.
        y0: State at the first time.
        times: Times of the solve, shape ``(T,)``.
        nominal: The times without STEER, between which the block remembers its steps.
        dense: Keep the steps, to read the solution in between.
    """
    solver = block.solver
    if not block.training and block.eval_solver is not None:
        solver = block.eval_solver
    remembers = block.training and solver.remembers
    memory = block.step_memory
    solution = solver.solve(
        vector_field,
        y0,
        times,
        stats=block.stats,
        dense=dense,
        first_step=memory.recall(times, nominal) if remembers else None,
    )
    if remembers:
        memory.keep(solution.next_step, times, nominal)
    return solution


def _last(ys: Any) -> Any:
    return tuple(part[-1] for part in ys) if isinstance(ys, tuple) else ys[-1]
