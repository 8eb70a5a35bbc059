"""What one solve spends, and where it stands when it fails."""

from typing import Any

import torch
from torch import Tensor

from steer_lightning.solvers.base import Phase, SolveStats
from steer_lightning.solvers.errors import Error, NFEBudgetExceededError
from steer_lightning.utils.autograd import backward_pass
from steer_lightning.utils.problem import VectorField, first_part


class Work:
    """Counts the evaluations of one solve, and stops it at a budget.

    Evaluations inside a backward pass, the adjoint's or a checkpoint's, count as backward ones
    and have a budget of their own in each pass.

    Args:
        y0: Initial state, whose dtype the message of an error names.
        stats: Counts to add to.
        max_nfe: Largest number of evaluations in the forward solve, and in each backward pass.
        tolerances: ``(rtol, atol)`` of the solve, for the message of an error.

    Attributes:
        dt: Step that was tried last; the solver keeps it here, for the message of an error.
    """

    def __init__(
        self,
        y0: Any,
        stats: SolveStats | None,
        max_nfe: int | None = None,
        tolerances: tuple[float, float] | None = None,
    ) -> None:
        self.stats = SolveStats() if stats is None else stats
        self.max_nfe = max_nfe
        self.tolerances = tolerances
        self.dtype: torch.dtype = first_part(y0).dtype
        self.dt: float | None = None
        self._spent = 0
        self._pass = backward_pass()

    @property
    def phase(self) -> Phase:
        """Whether a backward pass is under way."""
        return "forward" if backward_pass() == -1 else "backward"

    def spend(self, n: int, t: float | Tensor) -> None:
        """Count ``n`` evaluations that are about to begin at time ``t``.

        Raises:
            NFEBudgetExceededError: If they exceed ``max_nfe``.
        """
        if self._pass != backward_pass():
            self._spent, self._pass = 0, backward_pass()
        if self.max_nfe is not None and self._spent + n > self.max_nfe:
            t = float(t.detach()) if isinstance(t, Tensor) else t
            raise self.place(NFEBudgetExceededError(self.max_nfe, t, self.phase))
        self._spent += n
        self.stats.count_evaluation(self.phase, n)

    def place(self, error: Error) -> Error:
        """Add to an error what is known of this solve."""
        rtol, atol = self.tolerances or (None, None)
        return error.with_context(
            dt=self.dt,
            nfe=self._spent,
            dtype=self.dtype,
            rtol=rtol,
            atol=atol,
            stats=self.stats,
        )


class CountedField:
    """A vector field whose every call is counted, for solvers that are not ours.

    It stays outside anything compiled: a counter inside a compiled module would be a guard on a
    number that always changes.

    Args:
        vector_field: ``f(t, y)``.
        work: Where to count.
    """

    def __init__(self, vector_field: VectorField, work: Work) -> None:
        self.vector_field = vector_field
        self.work = work

    def __call__(self, t: Tensor, y: Any) -> Any:
        self.work.spend(1, t)
        return self.vector_field(t, y)
