"""ODE solvers behind one contract; the only place that knows torchdiffeq."""

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.dense import DenseSolution, DenseSolver
from steer_lightning.solvers.dense_grid import DenseGridSolver
from steer_lightning.solvers.errors import (
    NFEBudgetExceededError,
    NonFiniteStateError,
    RepeatedFailureError,
    SolverError,
    StepSizeUnderflowError,
)
from steer_lightning.solvers.fixed_grid import FixedGridSolver
from steer_lightning.solvers.torchdiffeq import TorchdiffeqSolver

__all__ = [
    "DenseGridSolver",
    "DenseSolution",
    "DenseSolver",
    "FixedGridSolver",
    "NFEBudgetExceededError",
    "NonFiniteStateError",
    "RepeatedFailureError",
    "Solution",
    "SolveStats",
    "Solver",
    "SolverError",
    "StepSizeUnderflowError",
    "TorchdiffeqSolver",
]
