"""The work of one solve: its evaluations, counted and bounded, and its steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from steer_lightning.solvers.base import Phase, SolveStats
from steer_lightning.solvers.errors import Error, NFEBudgetExceededError
from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import Time, runge_kutta_step
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.utils.autograd import backward_pass
from steer_lightning.utils.checks import check_resolution
from steer_lightning.utils.compiling import as_trained, compiled
from steer_lightning.utils.problem import VectorField, as_held, first_part, has_float64, held_by


class Work:
    """The evaluations of one solve, counted, and stopped at a budget.

    Those inside a backward pass, the adjoint's or a checkpoint's, count as backward ones and have
    the same budget in each pass.

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
        if tolerances is not None:
            check_resolution(tolerances[1], self.dtype)
        self.dt: float | None = None
        self._spent = 0
        self._pass = backward_pass()

    @property
    def phase(self) -> Phase:
        return "forward" if backward_pass() == -1 else "backward"

    def spend(self, n: int, t: float | Tensor) -> None:
        """Count ``n`` evaluations that are about to begin at time ``t``."""
        if self._pass != backward_pass():
            self._spent, self._pass = 0, backward_pass()
        if self.max_nfe is not None and self._spent + n > self.max_nfe:
            t = float(t.detach()) if isinstance(t, Tensor) else t
            raise self.place(NFEBudgetExceededError(self.max_nfe, t, self.phase))
        self._spent += n
        self.stats.count("nfe", n)

    def place(self, error: Error) -> Error:
        """Add to an error what is known of this solve."""
        rtol, atol = self.tolerances or (None, None)
        return error.with_context(
            dt=self.dt, nfe=self._spent, dtype=self.dtype, rtol=rtol, atol=atol, stats=self.stats
        )


@dataclass
class Stepper:
    """Takes Runge-Kutta steps of a vector field, counted; compiled or checkpointed where asked.

    Attributes:
        function: Takes one step, from what is known where it starts, if anything is.
    """

    function: ClassVar[Callable[..., Any]] = staticmethod(runge_kutta_step)

    vector_field: VectorField
    tableau: Tableau | RosenbrockTableau
    work: Work
    compile: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        self._held = held_by(self.vector_field) if self.checkpoint else []

    def __call__(self, start: Time, end: Time, y: Any, known: Any) -> tuple[Any, list[Any]]:
        """State at ``end``, and the stages."""
        if self.checkpoint and torch.is_grad_enabled():
            step = as_held(self._held, self._step)
            return recompute_in_backward(step, start, end, y, known, use_reentrant=False)
        return self._step(start, end, y, known)

    def _step(self, start: Time, end: Time, y: Any, known: Any) -> tuple[Any, list[Any]]:
        self.work.spend(len(self.tableau.c) - (known is not None), start)
        return self.run(self.function, (start, end), y, known, self.tableau)

    def run(self, function: Callable[..., Any], times: Sequence[Time], y: Any, *rest: Any) -> Any:
        """Value of ``function(vector_field, *times, y, *rest)``, compiled if steps are."""
        if self.compile:  # as tensors, times are no constants of the graph
            function, times = compiled(function), [_as_tensor(t, y) for t in times]
            y = as_trained(self.vector_field, y)
        return function(self.vector_field, *times, y, *rest)


def _as_tensor(t: Time, y: Any) -> Tensor:
    """A time in float64, without a copy for which a GPU is waited."""
    if isinstance(t, Tensor):
        return t
    device = first_part(y).device if has_float64(first_part(y).device) else torch.device("cpu")
    return torch.full((), t, dtype=torch.float64, device=device)
