"""Solving over a horizon, without a block."""

from types import SimpleNamespace

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn.integrate import solve_horizon
from steer_lightning.solvers import SolveStats
from steer_lightning.solvers.step_memory import StepMemory


def solve(horizon, solver, field, y0, t_eval=None, *, t_start=None):
    """What a block with this horizon and solver gets from a field."""
    if t_start is not None:
        field = WarpedField(field, TimeWarp(horizon.t0, t_start, 1.0))
    block = SimpleNamespace(
        solver=solver,
        eval_solver=None,
        horizon=horizon,
        stats=SolveStats(),
        step_memory=StepMemory(),
        training=True,
    )
    return solve_horizon(block, field, y0, horizon.times(y0) if t_eval is None else t_eval)
