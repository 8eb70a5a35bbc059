"""What can go wrong in a solve, each with what to do about it."""

import copyreg
from typing import Any


class SolverError(RuntimeError):
    """A solve that could not be finished."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by the message: the subclasses' arguments are in it."""
        return copyreg.__newobj__, (type(self), *self.args)  # type: ignore[attr-defined]


class NFEBudgetExceededError(SolverError):
    """The solver asked for more evaluations of the vector field than ``max_nfe``."""

    def __init__(self, max_nfe: int, t: float, phase: str) -> None:
        super().__init__(
            f"The {phase} solve needs more than max_nfe = {max_nfe} evaluations of the vector "
            f"field; it had reached t = {t:.6g}. The problem is stiff, the field is random within "
            f"a solve (dropout, batch norm in training mode), or the tolerances are tighter than "
            f"the state's dtype can resolve. Loosen rtol and atol, regularise the field, use a "
            f"fixed grid, or raise max_nfe."
        )


class StepSizeUnderflowError(SolverError):
    """The step size fell to where time no longer advances."""

    def __init__(self, dt: float, t: float, phase: str) -> None:
        super().__init__(
            f"Step size underflow in the {phase} solve: dt = {dt:.3g} no longer advances "
            f"t = {t:.6g}. The problem is stiff or has no solution here. Loosen rtol and atol, "
            f"use float64, lower the learning rate, or use a fixed grid."
        )


class NonFiniteStateError(SolverError):
    """NaN or infinity in the state or in the vector field's output."""

    def __init__(self, t: float, phase: str) -> None:
        super().__init__(
            f"The state or the vector field became NaN or infinite at t = {t:.6g} in the {phase} "
            f"solve. Check the batch and the weights for NaN, lower the learning rate, or clip "
            f"the gradients."
        )
