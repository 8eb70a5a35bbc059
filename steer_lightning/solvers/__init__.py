"""ODE solvers behind one contract; the only place that knows torchdiffeq."""

from steer_lightning.solvers.adaptive import AdaptiveSolver
from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.errors import (
    ForeignSolverError,
    NFEBudgetExceededError,
    NonFiniteStateError,
    RepeatedFailureError,
    SolverError,
    StepSizeUnderflowError,
)
from steer_lightning.solvers.fixed_grid import FixedGridSolver
from steer_lightning.solvers.rosenbrock import RosenbrockSolver
from steer_lightning.solvers.steps import Steps
from steer_lightning.solvers.torchdiffeq import TorchdiffeqSolver
from steer_lightning.utils.problem import VectorField

__all__ = [
    "AdaptiveSolver",
    "FixedGridSolver",
    "ForeignSolverError",
    "NFEBudgetExceededError",
    "NonFiniteStateError",
    "RepeatedFailureError",
    "RosenbrockSolver",
    "Solution",
    "SolveStats",
    "Solver",
    "SolverError",
    "StepSizeUnderflowError",
    "Steps",
    "TorchdiffeqSolver",
    "VectorField",
]
