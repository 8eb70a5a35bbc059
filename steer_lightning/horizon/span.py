"""One interval, whatever times are asked for in between."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.horizon.base import Horizon, WarpedField
from steer_lightning.horizon.end_time import Draw, EndTimeDraw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.problem import VectorField, default_times, exact, first_part


class SpanHorizon(Horizon):
    r"""One interval from a fixed end ``t0`` to an end ``t1`` that STEER moves.

    Whatever times are asked for in between, the whole interval is stretched by one affine warp.
    With one end time for all samples the solver is given the stretched times, as if it had been
    asked for them; with one for each sample, or a learned one, it keeps the nominal times and the
    field is warped. The solver may run back, and ``t1 < t0`` is allowed.

    Args:
        t0: Fixed end.
        t1: Moved end.
        learn_t1: Make ``t1`` a parameter. The solver's times stay those given here; the learned
            end time acts, and gets its gradient, through the rate of the warp: with a loss
            :math:`L` it is :math:`\langle \partial L / \partial y(t_1), f(t_1, y(t_1)) \rangle`.
        t1_range: Smallest and largest value of a learned ``t1``. Where the optimiser has left the
            range, the next training solve puts the parameter back to its edge.
        eval_end_time: End of the solves in eval mode that are given no times; ``t1`` if not
            given. A draw still moves ``t1``.

    Raises:
        ValueError: If the ends are equal or not finite, an end time lies on the other side of
            ``t0``, ``t1_range`` has no ``t1`` to learn, or ``t1`` is learned and
            ``eval_end_time`` given, or so far from zero that float32 cannot hold it.
        TypeError: If an end is a tensor.

    Example:
        >>> from steer_lightning.horizon import FixedOffset
        >>> horizon, y0 = SpanHorizon(0.0, 1.0), torch.zeros(1)
        >>> horizon.perturb(FixedOffset(0.5))
        >>> field, times = horizon.warp(lambda t, y: torch.ones_like(y), horizon.times(y0), y0)
        >>> times
        tensor([0.0000, 1.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        t0: float = 0.0,
        t1: float = 1.0,
        learn_t1: bool = False,
        t1_range: Sequence[float] | None = None,
        eval_end_time: float | None = None,
    ) -> None:
        super().__init__()
        if any(isinstance(end, Tensor) for end in (t0, t1)):
            raise TypeError(
                "Expected t0 and t1 to be numbers, but got a tensor. A block of this library "
                "learns its end time with learn_t1=True; that of somebody else's solve cannot be "
                "learned from outside."
            )
        ends = torch.tensor([t0, t1], dtype=torch.float64)
        if not bool(ends.isfinite().all()) or t0 == t1:
            raise ValueError(f"Expected finite t0 != t1, but got t0 = {t0}, t1 = {t1}.")
        if learn_t1 and eval_end_time is not None:
            raise ValueError(
                f"Expected a learned `t1` or `eval_end_time`, but got both: a learned end time is "
                f"where the model is evaluated. Leave eval_end_time = {eval_end_time:g} out."
            )
        if learn_t1 and torch.finfo(torch.float32).eps * abs(t1) > 1e-3 * abs(t1 - t0):
            raise ValueError(
                f"Expected a learned `t1` that float32 tells apart from t0 = {t0:.17g}, but got "
                f"{t1:.17g}. Measure time from t0."
            )
        if t1_range is not None and not (
            learn_t1 and len(t1_range) == 2 and t1_range[0] <= t1 <= t1_range[1]
        ):
            raise ValueError(
                f"Expected `t1_range` = (smallest, largest), around t1 = {t1:g} and with "
                f"learn_t1=True, but got {t1_range} with learn_t1={learn_t1}."
            )
        for end in (*(t1_range or ()), *([] if eval_end_time is None else [eval_end_time])):
            if not (math.isfinite(end) and (end - t0) * (t1 - t0) > 0.0):
                raise ValueError(
                    f"Expected `t1_range` and `eval_end_time` on the side of t0 = {t0:g} where "
                    f"t1 = {t1:g} lies, but got {end:g}."
                )
        self.t0 = float(t0)
        self.t1 = float(t1)
        self.t1_range = None if t1_range is None else tuple(t1_range)
        self.eval_end_time = eval_end_time
        self.learned_t1 = nn.Parameter(torch.tensor(self.t1)) if learn_t1 else None

    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if ``b`` reaches ``t0``.

        A learned end time that comes within ``b`` of ``t0`` later on cuts ``b`` to
        ``(1 - epsilon) |t1 - t0|``.
        """
        # An offset, which nothing cuts, is from where a learned end time is now.
        end = self.t1 if isinstance(draw, EndTimeDraw) else self.end_time
        draw.offsets(torch.tensor([end - self.t0], dtype=torch.float64), 1, clip=False)

    def perturb(self, draw: Draw, root: nn.Module | None = None) -> None:
        super().perturb(draw, root)
        if not draw.per_sample:
            self._offsets(draw, None)

    def describe(self) -> str:
        words = f"[{self.t0:g}, {self.t1:g}]" + (" learned" if self.learned_t1 is not None else "")
        if self.t1_range is not None:
            words += " in [{:g}, {:g}]".format(*self.t1_range)
        if self.eval_end_time is not None:
            words += f", evaluated at {self.eval_end_time:g}"
        return words

    def in_force(self) -> dict[str, float]:
        """The end time in force; the mean over the samples of the last batch if each has one."""
        return {"end_time": self.end_time if self.drawn is None else self.drawn}

    @property
    def end_time(self) -> float:
        """The nominal end time, or the learned one."""
        learned = self._learned()
        return self.t1 if learned is None else float(learned.detach())

    @property
    def default_end(self) -> float:
        """The nominal end of a solve that is given no times, in the mode that is on now."""
        if self.training or self.eval_end_time is None:
            return self.t1
        draw = self.history.current()
        moved = draw is not None and self._offsets(draw, 1) is not None
        return self.t1 if moved else self.eval_end_time

    def times(self, y0: Any) -> Tensor:
        return default_times(y0, self.t0, self.default_end)

    def warp(
        self, vector_field: VectorField, t_eval: Tensor, y0: Any
    ) -> tuple[VectorField, Tensor]:
        warp = self.time_warp(first_part(y0))
        if warp is None:
            return vector_field, t_eval
        if not isinstance(warp.rate, Tensor):  # the times move, and the field need not be wrapped
            return vector_field, warp.actual(exact(t_eval))
        return WarpedField(vector_field, warp), t_eval

    def time_warp(self, y: Tensor) -> TimeWarp | None:
        """The map of times in force for a state; ``None`` if nominal time is actual time."""
        draw = self.current_draw()
        offsets = None if draw is None else self._offsets(draw, len(y) if y.ndim else None)
        learned = self._learned()
        if offsets is None and learned is None:
            return None
        offset = 0.0 if offsets is None else offsets.squeeze(-1)
        if learned is not None:
            if isinstance(offset, Tensor):
                offset = offset.to(y.real.dtype).to(learned.device)
            rate = (learned.to(y.real.dtype) + offset - self.t0) / (self.t1 - self.t0)
        else:
            rate = 1.0 + torch.as_tensor(offset) / (self.t1 - self.t0)
            if rate.ndim == 0:
                return None if rate == 1.0 else TimeWarp(self.t0, self.t0, rate.item())
        return TimeWarp(self.t0, self.t0, rate.to(y.device, y.real.dtype))

    def _learned(self) -> Tensor | None:
        """The learned end time, kept in its range."""
        t1 = self.learned_t1
        if t1 is None or self.t1_range is None:
            return t1
        inside = t1.detach().clamp(*self.t1_range)
        if self.training and torch.is_grad_enabled() and bool(inside != t1):
            with torch.no_grad():
                t1.copy_(inside)
        return t1 + (inside - t1.detach())  # clamp has no gradient that leads back

    def _offsets(self, draw: Draw, batch_size: int | None) -> Tensor | None:
        """Offsets of a draw, shape ``(1,)`` or ``(B, 1)``, for the end time as it is now."""
        learned = self._learned()
        end = self.end_time if learned is None else learned.cpu().double()
        gap = torch.as_tensor(end - self.t0, dtype=torch.float64).reshape(1)
        offsets = draw.offsets(gap, batch_size, clip=learned is not None)
        self.note(self.end_time + (0.0 if offsets is None else float(offsets.detach().mean())))
        return offsets
