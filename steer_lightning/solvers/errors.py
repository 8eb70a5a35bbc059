"""Errors of solves, each with where it arose and what to do about it."""

import copyreg
from typing import Any, TypeVar

import torch

Error = TypeVar("Error", bound="SolverError")


class SolverError(RuntimeError):
    """A solve that could not be finished.

    What the solver knows it fills in, and who stands further up adds the rest with
    ``with_context``; the message says it all. What is not known is ``None``.

    Attributes:
        phase: ``"forward"``, or ``"backward"`` for an adjoint's solve.
        t: Time that the solve had reached; ``dt`` the step tried last.
        nfe: Evaluations of the vector field in this solve so far.
        dtype: Data type of the state; ``rtol`` and ``atol`` the tolerances.
        stats: Counts of the block that solved, by which its path is found; not pickled.
        block: Path of that block in the model.
        stage: ``"training"``, ``"validation"``, ``"test"`` or ``"predict"``; ``epoch``,
            ``batch_idx`` and ``rank`` likewise from zero.
        weights: What is wrong with the model's weights, in words.

    Example:
        >>> error = NonFiniteStateError(0.5, "forward").with_context(nfe=20, block="flow")
        >>> print(str(error).partition("Where: ")[2])
        block 'flow', t = 0.5, NFE = 20.
    """

    phase: str | None = None
    t: float | None = None
    dt: float | None = None
    nfe: int | None = None
    dtype: torch.dtype | None = None
    rtol: float | None = None
    atol: float | None = None
    stats: object = None
    block: str | None = None
    stage: str | None = None
    epoch: int | None = None
    batch_idx: int | None = None
    rank: int | None = None
    weights: str | None = None

    def with_context(self: Error, **context: Any) -> Error:
        """Add attributes of this class to the error; what is known already stays."""
        for name, value in context.items():
            known = SolverError.__annotations__
            if name not in known:
                raise TypeError(f"Expected names among {sorted(known)}, but got {name!r}.")
            if getattr(self, name) is None:
                setattr(self, name, value)
        return self

    def __str__(self) -> str:
        problem = super().__str__()
        known = {name: value for name in _WHERE if (value := getattr(self, name)) is not None}
        if known.keys() <= {"t", "dt"}:  # which the problem names itself
            return problem
        return f"{problem} Where: {', '.join(_WHERE[k].format(v) for k, v in known.items())}."

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes with everything but the counts, which are the sender's."""
        state = {name: value for name, value in self.__dict__.items() if name != "stats"}
        return copyreg.__newobj__, (type(self), *self.args), state  # type: ignore[attr-defined]


_WHERE = {
    "block": "block {!r}",
    "t": "t = {:.6g}",
    "dt": "dt = {:.3g}",
    "nfe": "NFE = {}",
    "dtype": "{}",
    "rtol": "rtol = {:g}",
    "atol": "atol = {:g}",
    "stage": "{}",
    "epoch": "epoch {}",
    "batch_idx": "batch {}",
    "rank": "rank {}",
    "weights": "{}",
}


class NFEBudgetExceededError(SolverError):
    """The solver asked for more evaluations of the vector field than ``max_nfe``."""

    def __init__(self, max_nfe: int, t: float, phase: str) -> None:
        super().__init__(
            f"The {phase} solve needs more than max_nfe = {max_nfe} evaluations of the vector "
            f"field; it had reached t = {t:.6g}. The problem is stiff, the field is random within "
            f"a solve (dropout, batch norm in training mode), or the tolerances are tighter than "
            f"the state's dtype, or autocast in the field, can resolve. Loosen rtol and atol, "
            f"regularise the field, use RosenbrockSolver where it is stiff, or a fixed grid, or "
            f"raise max_nfe."
        )
        self.phase, self.t = phase, t


class StepSizeUnderflowError(SolverError):
    """The step size fell to where time no longer advances."""

    def __init__(self, dt: float, t: float, phase: str) -> None:
        super().__init__(
            f"Step size underflow in the {phase} solve: dt = {dt:.3g} no longer advances "
            f"t = {t:.6g}. The problem is stiff or has no solution here. Loosen rtol and atol, "
            f"use float64, lower the learning rate, or use RosenbrockSolver or a fixed grid."
        )
        self.phase, self.t, self.dt = phase, t, dt


class NonFiniteStateError(SolverError):
    """NaN or infinity in the state or in the vector field's output."""

    def __init__(self, t: float, phase: str) -> None:
        super().__init__(
            f"The state or the vector field became NaN or infinite at t = {t:.6g} in the {phase} "
            f"solve. Check the batch and the weights for NaN, lower the learning rate, or clip "
            f"the gradients."
        )
        self.phase, self.t = phase, t


class ForeignSolverError(SolverError):
    """A solve of another library that gave up."""

    def __init__(self, library: str, problem: str, phase: str) -> None:
        super().__init__(
            f"A {phase} solve of {library} failed: {problem}. The problem is stiff, the state NaN "
            f"or infinite, or the tolerances are tighter than its dtype can resolve. Loosen them, "
            f"lower the learning rate, regularise the field, or use a fixed grid."
        )
        self.phase = phase


class RepeatedFailureError(SolverError):
    """Solves failed in one batch after the other."""

    def __init__(self, n: int, first: str, last: str) -> None:
        super().__init__(
            f"The solves of {n} training batches in a row failed. The first, {first} The last, "
            f"{last} If the first names NaN in the weights or a stiff field, go back to a "
            f"checkpoint before it with a lower learning rate; or raise max_consecutive."
        )
