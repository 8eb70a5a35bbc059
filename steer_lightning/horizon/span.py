"""One interval, whatever times are asked for in between."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.horizon.base import Horizon, WarpedField
from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.problem import VectorField, default_times, first_part, has_float64


class SpanHorizon(Horizon):
    """One interval from a fixed end ``t0`` to an end ``t1`` that STEER moves.

    Whatever times are asked for in between, the whole interval is stretched by one affine warp.
    With one end time for all samples the solver is given the stretched times, as if it had been
    asked for them; with one for each sample, or a learned one, it keeps the nominal times and the
    field is warped. The solver may run back, and ``t1 < t0`` is allowed.

    Args:
        t0: Fixed end.
        t1: Moved end.
        learn_t1: Make ``t1`` a parameter. The solver's times stay those given here; the learned
            end time acts, and gets its gradient, through the rate of the warp.

    Raises:
        ValueError: If the ends are equal or not finite.
        TypeError: If an end is a tensor.

    Example:
        >>> from steer_lightning.horizon.end_time import FixedOffset
        >>> horizon, y0 = SpanHorizon(0.0, 1.0), torch.zeros(1)
        >>> horizon.perturb(FixedOffset(0.5))
        >>> field, times = horizon.warp(lambda t, y: torch.ones_like(y), horizon.times(y0), y0)
        >>> times
        tensor([0.0000, 1.5000], dtype=torch.float64)
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

    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if ``b`` reaches ``t0``.

        A learned end time that comes within ``b`` of ``t0`` later on cuts ``b`` to
        ``(1 - epsilon) |t1 - t0|``.
        """
        draw.offsets(torch.tensor([self.t1 - self.t0], dtype=torch.float64), 1, clip=False)

    def perturb(self, draw: Draw, root: nn.Module | None = None) -> None:
        """Put a draw in force; see ``Movable.perturb``."""
        super().perturb(draw, root)
        if not draw.per_sample:
            self._offsets(draw, None)

    def describe(self) -> str:
        return f"[{self.t0:g}, {self.t1:g}]" + (" learned" if self.learned_t1 is not None else "")

    def in_force(self) -> dict[str, float]:
        """The end time in force; the mean over the samples of the last batch if each has one."""
        return {"end_time": self.end_time if self.drawn is None else self.drawn}

    @property
    def end_time(self) -> float:
        """The nominal end time, or the learned one."""
        return self.t1 if self.learned_t1 is None else float(self.learned_t1.detach())

    def times(self, y0: Any) -> Tensor:
        return default_times(y0, self.t0, self.t1)

    def warp(
        self, vector_field: VectorField, t_eval: Tensor, y0: Any
    ) -> tuple[VectorField, Tensor]:
        warp = self.time_warp(first_part(y0))
        if warp is None:
            return vector_field, t_eval
        if warp.is_shared:  # the times move, and the field need not be wrapped
            exact = t_eval.double() if has_float64(t_eval.device) else t_eval
            return vector_field, warp.actual(exact)
        return WarpedField(vector_field, warp), t_eval

    def time_warp(self, y: Tensor) -> TimeWarp | None:
        """The map of times in force for a state; ``None`` if nominal time is actual time."""
        draw = self.current_draw()
        offsets = None if draw is None else self._offsets(draw, self._batch_size(draw, y))
        if offsets is None and self.learned_t1 is None:
            return None
        offset = 0.0 if offsets is None else offsets.squeeze(-1)
        if self.learned_t1 is not None:
            if isinstance(offset, Tensor):
                offset = offset.to(y.real.dtype).to(self.learned_t1.device)
            rate = (self.learned_t1.to(y.real.dtype) + offset - self.t0) / (self.t1 - self.t0)
        else:
            rate = 1.0 + torch.as_tensor(offset) / (self.t1 - self.t0)
            if rate.ndim == 0:
                return TimeWarp(self.t0, self.t0, rate.item())
        return TimeWarp(self.t0, self.t0, rate.to(y.device, y.real.dtype))

    def _offsets(self, draw: Draw, batch_size: int | None) -> Tensor | None:
        """Offsets of a draw, shape ``(1,)`` or ``(B, 1)``, for the end time as it is now."""
        gap = torch.tensor([self.end_time - self.t0], dtype=torch.float64)
        offsets = draw.offsets(gap, batch_size, clip=self.learned_t1 is not None)
        if not in_backward():
            self.drawn = self.end_time + (0.0 if offsets is None else float(offsets.mean()))
        return offsets
