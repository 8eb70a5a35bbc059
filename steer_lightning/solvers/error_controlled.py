"""What solvers have in common that choose their steps by an error estimate."""

import math
from abc import abstractmethod
from typing import Any, Literal

from torch import Tensor

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.stepping import Method, take_steps
from steer_lightning.solvers.tf32 import TF32Check
from steer_lightning.solvers.work import Work
from steer_lightning.utils.checks import (
    check_choice,
    check_problem,
    check_tolerances,
    refuse_export,
)
from steer_lightning.utils.problem import VectorField


class ErrorControlledSolver(Solver):
    """A solver whose steps are as long as the tolerances allow.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit.
        first_step: Length of the first step to try; ``"auto"`` or ``"previous"``.

    Raises:
        ValueError: If a tolerance, ``max_nfe`` or ``first_step`` is not positive.
    """

    def __init__(
        self,
        rtol: float,
        atol: float,
        max_nfe: int | None,
        first_step: float | Literal["auto", "previous"],
    ) -> None:
        check_tolerances(rtol, atol, max_nfe)
        if isinstance(first_step, str):
            check_choice("first_step", first_step, ("auto", "previous"))
        elif not (math.isfinite(first_step) and first_step > 0):
            raise ValueError(
                f"Expected `first_step` to be finite and > 0, 'auto' or 'previous', but got "
                f"{first_step}."
            )
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe
        self.first_step = first_step
        self._check_tf32 = TF32Check()

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether ``first_step`` is ``"previous"``."""
        return self.first_step == "previous"

    def solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
        dense: bool = False,
        first_step: float | None = None,
    ) -> Solution:
        """Integrate; see :meth:`Solver.solve`."""
        refuse_export(self)
        check_problem(y0, t_eval)
        self._check_tf32(vector_field, y0, self.rtol)
        tolerances = (self.rtol, self.atol)
        work = Work(y0, stats, self.max_nfe, tolerances)
        if first_step is None and not isinstance(self.first_step, str):
            first_step = self.first_step
        found = take_steps(
            self._method(vector_field, y0, work), vector_field, y0, t_eval, work, tolerances,
            first_step=first_step, dense=dense,
        )  # fmt: skip
        return Solution(found.ys, work.stats, found.steps, found.next_step)

    @abstractmethod
    def _method(self, vector_field: VectorField, y0: Any, work: Work) -> Method:
        """What takes the first step of a solve."""
