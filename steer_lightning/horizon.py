r"""Horizons: where an integration ends, and how STEER moves that end.

A horizon turns a nominal solve, over times that never change, into the solve that is in force.
Models hold horizons; whoever trains them (a callback, a context manager) moves them:
``perturb(draw)`` before a training step, ``reset()`` after it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.functional.end_time import Draw
from steer_lightning.functional.time_warp import TimeWarp
from steer_lightning.functional.walk import walking_order
from steer_lightning.solvers.base import (
    Solution,
    Solver,
    SolveStats,
    VectorField,
    check_is_module,
    check_problem,
    default_times,
    first_part,
)


class WarpedField(nn.Module):
    """A vector field seen in nominal time: ``rate * f(warp(s), y)``.

    Args:
        vector_field: ``f(t, y)``; receives ``t`` of shape ``(B,)`` if the warp has one rate or
            one start for each sample, else ``()``.
        warp: The map from nominal to actual time, fixed for the life of this field: a backward
            pass sees the end time of its forward pass.
    """

    def __init__(self, vector_field: VectorField, warp: TimeWarp) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.warp = warp

    @property
    def controlled_parts(self) -> int | None:
        """How many parts of the state set the step size; ``None`` for all."""
        return getattr(self.vector_field, "controlled_parts", None)

    def forward(self, s: Tensor, y: Any) -> Any:
        """Derivative of ``y`` in nominal time."""
        return self.warp.scale(self.vector_field(self.warp.actual(s), y))

    def trainable_tensors(self) -> list[Tensor]:
        """What an adjoint must differentiate besides the parameters: a learnable end time.

        Raises:
            TypeError: If the field is not an ``nn.Module``, as its parameters cannot be found.
        """
        check_is_module(self.vector_field)
        return [x for x in self.warp if isinstance(x, Tensor) and x.requires_grad]


class Horizon(nn.Module):
    """What can be perturbed. Its draw is plain state: never a buffer, never in ``state_dict``."""

    def __init__(self) -> None:
        super().__init__()
        self._draw: Draw | None = None
        self.solved = False
        self.owner: object | None = None

    @property
    def draw(self) -> Draw | None:
        """The draw in force."""
        return self._draw

    def perturb(self, draw: Draw) -> None:
        """Put a draw in force until the next call or :meth:`reset`.

        Raises:
            ValueError: If the draw does not fit the horizon.
        """
        self.check(draw)
        self._draw = draw

    def reset(self) -> None:
        """Go back to the nominal end time."""
        self.__dict__.update(self._nominal())

    def __getstate__(self) -> dict[str, Any]:
        """A copy is nobody's, and stands at the nominal end time."""
        return {**self.__dict__, **self._nominal(), "owner": None, "solved": False}

    def _nominal(self) -> dict[str, Any]:
        """The attributes that a draw changes, as they are without one."""
        return {"_draw": None}

    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if a draw could not be put in force."""
        raise NotImplementedError

    def describe(self) -> str:
        """The interval in words, for a table."""
        raise NotImplementedError

    def in_force(self) -> dict[str, float]:
        """What is in force now, by the names it is logged under."""
        raise NotImplementedError

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
        """Solve with the end times in force; see :meth:`steer_lightning.solvers.Solver.solve`."""
        raise NotImplementedError


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


class GridHorizon(Horizon):
    r"""One interval between each pair of neighbouring times, each with an end time of its own.

    The solution on interval :math:`i` starts at the unperturbed :math:`t_i` and runs to a drawn
    :math:`T_i` in place of :math:`t_{i+1}`; the next interval starts at :math:`t_{i+1}` again. A
    field without time (attribute ``autonomous = True``) cannot tell where an interval starts:
    the stretched intervals are added up to a new monotone grid and solved in one smooth solve.
    Other fields are solved interval by interval.

    ``b`` is cut to ``(1 - epsilon)`` times each gap, and the end times depend on the draw alone:
    asking again within a batch gives the same ones.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.2.

    Example:
        >>> from steer_lightning.functional import EndTimeDraw
        >>> horizon = GridHorizon()
        >>> horizon.perturb(EndTimeDraw(b=None, key=3))
        >>> t_eval = torch.tensor([0.0, 0.5, 2.0])
        >>> ends = horizon.end_times(t_eval)
        >>> bool((ends > t_eval[:-1]).all()), bool((ends - t_eval[1:] < t_eval.diff()).all())
        (True, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._stretch = 1.0

    def check(self, draw: Draw) -> None:
        """Every draw fits: ``b`` is cut to each gap."""

    def _nominal(self) -> dict[str, Any]:
        return {**super()._nominal(), "_stretch": 1.0}

    def describe(self) -> str:
        """The interval in words."""
        return "each interval of t_eval"

    def in_force(self) -> dict[str, float]:
        """Mean ratio of stretched to given interval lengths, in the last solve."""
        return {"stretch": self._stretch}

    def end_times(self, t_eval: Tensor, batch_size: int | None = None) -> Tensor:
        """End times in force, shape ``(T - 1,)``, or ``(B, T - 1)`` with one for each sample."""
        rates = self._rates(t_eval, batch_size)
        return t_eval[1:] if rates is None else t_eval[:-1] + rates * t_eval.diff()

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
        """Solve at ``t_eval`` with the end times in force.

        Raises:
            ValueError: If ``t_eval`` is not given: a grid has no times of its own; or if
                ``t_start`` is: a grid's times are actual times.
        """
        if t_start is not None:
            raise ValueError("Expected no `t_start` with a GridHorizon, whose times are actual.")
        if t_eval is None:
            raise ValueError(
                "Expected `t_eval` with a GridHorizon, which has no times of its own."
            )
        self.solved = True
        if self._draw is not None:
            check_problem(y0, t_eval)  # as a whole: its intervals would pass one by one
        rates = self._rates(t_eval, len(first_part(y0)))
        if rates is None:
            return solver.solve(vector_field, y0, t_eval, stats=stats)
        self._stretch = float(rates.mean())
        if rates.ndim == 1 and getattr(vector_field, "autonomous", False):
            stretched = torch.cat([t_eval[:1], t_eval[0] + (rates * t_eval.diff()).cumsum(0)])
            return solver.solve(vector_field, y0, stretched, stats=stats)
        stats = SolveStats() if stats is None else stats
        y, ys = y0, [y0]
        for i in range(len(t_eval) - 1):
            warp = TimeWarp(t_eval[i], t_eval[i], rates[..., i])
            interval = solver.solve(
                WarpedField(vector_field, warp), y, t_eval[i : i + 2], stats=stats
            )
            y = _last(interval.ys)
            ys.append(y)
        return Solution(_stack(ys), stats)

    def rates(self, times: Tensor, lengths: Tensor, reverse: bool = False) -> Tensor | None:
        """Stretch of each interval of series that have a time grid of their own.

        Samples whose intervals all have the same lengths share their end times, unless the draw
        is one for each sample; other samples have their own.

        Args:
            times: Times of each sample, padded by the last one, shape ``(B, K)``.
            lengths: Number of times of each sample, shape ``(B,)``.
            reverse: Number the intervals from the last time on: the solution of an interval
                starts at its later end, and the earlier one moves.

        Returns:
            Ratio of stretched to nominal length of each interval, one in the padding, shape
            ``(B, K - 1)``, not differentiable; ``None`` if nothing is stretched.
        """
        self.solved = True
        if self._draw is None:
            return None
        order = walking_order(lengths, times.shape[1], reverse)
        gaps = times.detach().gather(1, order).diff(dim=1).cpu().double()
        moved = gaps != 0
        if not bool(moved.any()):
            return None
        shared = bool((gaps == gaps[:1]).all())
        drawn = gaps[0, moved[0]] if shared else gaps[moved]
        offsets = self._draw.offsets(drawn, len(gaps) if shared else 1, clip=True)
        if offsets is None:
            return None
        if shared:
            offsets = offsets.expand(len(gaps), -1)
        stretch = 1.0 + offsets.flatten() / gaps[moved]
        rates = torch.ones_like(gaps).masked_scatter(moved, stretch)
        self._stretch = float(rates[moved].mean())
        return rates.to(times)

    def _rates(self, t_eval: Tensor, batch_size: int | None) -> Tensor | None:
        if self._draw is None:
            return None
        gaps = t_eval.detach().diff().cpu().double()
        offsets = self._draw.offsets(gaps, batch_size, clip=True)
        return None if offsets is None else (1.0 + offsets / gaps).to(t_eval)


def _last(ys: Any) -> Any:
    return tuple(part[-1] for part in ys) if isinstance(ys, tuple) else ys[-1]


def _stack(states: list[Any]) -> Any:
    if isinstance(states[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*states, strict=True))
    return torch.stack(states)
