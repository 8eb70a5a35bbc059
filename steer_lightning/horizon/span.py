"""One interval, whatever times are asked for in between."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.functional.end_time import Draw
from steer_lightning.functional.time_warp import TimeWarp
from steer_lightning.horizon.base import Horizon, WarpedField
from steer_lightning.solvers.base import (
    Solution,
    Solver,
    SolveStats,
    VectorField,
    default_times,
    first_part,
)


class SpanHorizon(Horizon):
    r"""One interval from a fixed end ``t0`` to an end ``t1`` that STEER moves.

    Whatever times are asked for in between, the whole interval is stretched by one affine warp.
    With one end time for all samples the solver is given the stretched times, as if it had been
    asked for them; with one for each sample, or a learned one, it keeps the nominal times and the
    field is warped.
    The solver may run from ``t0`` to ``t1`` or back: ``t0`` is always the fixed end, and
    ``t1 < t0`` is allowed.

    Args:
        t0: Fixed end.
        t1: Moved end.
        learn_t1: Make ``t1`` a parameter. The solver's times stay those given here; the learned
            end time acts, and gets its gradient, through the rate of the warp.

    Raises:
        ValueError: If the ends are equal or not finite.
        TypeError: If an end is a tensor.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Eq. 4.

    Example:
        >>> from steer_lightning.functional import FixedOffset
        >>> from steer_lightning.solvers import TorchdiffeqSolver
        >>> horizon = SpanHorizon(0.0, 1.0)
        >>> horizon.perturb(FixedOffset(0.5))
        >>> field = lambda t, y: torch.ones_like(y)
        >>> horizon.solve(TorchdiffeqSolver(), field, torch.zeros(1)).ys[-1]
        tensor([1.5000])
    """

    def __init__(self, t0: float = 0.0, t1: float = 1.0, learn_t1: bool = False) -> None:
        super().__init__()
        given: tuple[object, ...] = (t0, t1)
        if any(isinstance(end, Tensor) for end in given):
            raise TypeError(
                "Expected t0 and t1 to be numbers, but got a tensor. A CNF of this library learns "
                "its end time with learn_t1=True; that of somebody else's solve cannot be learned "
                "from outside."
            )
        ends = torch.tensor([t0, t1], dtype=torch.float64)
        if not bool(ends.isfinite().all()) or t0 == t1:
            raise ValueError(f"Expected finite t0 != t1, but got t0 = {t0}, t1 = {t1}.")
        self.t0 = float(t0)
        self.t1 = float(t1)
        self.learned_t1 = nn.Parameter(torch.tensor(self.t1)) if learn_t1 else None
        self._offsets: Tensor | None = None

    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if ``b`` reaches ``t0``."""
        draw.offsets(self._gap(), 1, clip=False)

    def perturb(self, draw: Draw) -> None:
        """Put a draw in force; one end time now, those of samples when the batch is known."""
        super().perturb(draw)
        self._offsets = None if draw.per_sample else draw.offsets(self._gap(), None, clip=False)

    def _nominal(self) -> dict[str, Any]:
        return {**super()._nominal(), "_offsets": None}

    def describe(self) -> str:
        """The interval in words."""
        return f"[{self.t0:g}, {self.t1:g}]" + (" learned" if self.learned_t1 is not None else "")

    def in_force(self) -> dict[str, float]:
        """The end time in force; the mean over the samples of the last batch if each has one."""
        offset = 0.0 if self._offsets is None else float(self._offsets.mean())
        return {"end_time": self.end_time + offset}

    @property
    def end_time(self) -> float:
        """The nominal end time, or the learned one."""
        return self.t1 if self.learned_t1 is None else float(self.learned_t1.detach())

    def warp(self, y0: Any) -> TimeWarp | None:
        """The warp in force for a state; ``None`` if nominal time is actual time."""
        y = first_part(y0)
        if self._draw is not None and self._draw.per_sample:
            self._offsets = self._draw.offsets(self._gap(), len(y), clip=False)
        if self._offsets is None and self.learned_t1 is None:
            return None
        offset = 0.0 if self._offsets is None else self._offsets.squeeze(-1)
        if self.learned_t1 is None:
            rate = 1.0 + torch.as_tensor(offset) / (self.t1 - self.t0)
        else:
            learned = self.learned_t1.double() if y.dtype == torch.float64 else self.learned_t1
            if isinstance(offset, Tensor):
                offset = offset.to(learned)
            rate = (learned + offset - self.t0) / (self.t1 - self.t0)
        return TimeWarp(self.t0, self.t0, rate.to(default_times(y)))

    def solve(
        self,
        solver: Solver,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor | None = None,
        *,
        t_start: Tensor | None = None,
        stats: SolveStats | None = None,
    ) -> Solution:
        r"""Solve over the interval, or at the nominal times asked for.

        Args:
            solver: Integrator.
            vector_field: ``f(t, y)``.
            y0: State at ``t_eval[0]``.
            t_eval: Nominal times, shape ``(T,)``; from ``t0`` to ``t1`` if not given.
            t_start: Actual time of each sample at ``t0``, shape ``(B,)``: the samples run
                through intervals of one length that begin at times of their own.
            stats: Counts to add to.

        Returns:
            States at the images of ``t_eval`` under the warp, and the counts.
        """
        self.solved = True
        if t_eval is None:
            t_eval = default_times(y0, self.t0, self.t1)
        warp = self.warp(y0)
        if t_start is not None:
            rate = torch.ones_like(t_start[0]) if warp is None else warp.rate
            warp = TimeWarp(self.t0, t_start, rate)
        if warp is None:
            return solver.solve(vector_field, y0, t_eval, stats=stats)
        if warp.is_shared:  # the times move, and the field need not be wrapped
            return solver.solve(vector_field, y0, warp.actual(t_eval), stats=stats)
        return solver.solve(WarpedField(vector_field, warp), y0, t_eval, stats=stats)

    def _gap(self) -> Tensor:
        return torch.tensor([self.end_time - self.t0], dtype=torch.float64)
