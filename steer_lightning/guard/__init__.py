"""Solves that fail: said where, or dropped."""

from steer_lightning.guard.solver_guard import SolverGuard

__all__ = ["SolverGuard"]
