"""One interval between each pair of neighbouring times."""

from typing import Any

import torch
from torch import Tensor

from steer_lightning.horizon.base import Horizon, WarpedField
from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.checks import check_problem
from steer_lightning.utils.problem import VectorField, exact, first_part, has_float64


class GridHorizon(Horizon):
    r"""One interval between each pair of neighbouring times, each with an end time of its own.

    The solution on interval :math:`i` starts at the unperturbed :math:`t_i` and runs to a drawn
    :math:`T_i` in place of :math:`t_{i+1}`; the next interval starts at :math:`t_{i+1}` again. A
    field without time (attribute ``autonomous = True``) cannot tell where an interval starts:
    the stretched intervals are added up to a new monotone grid and solved in one smooth solve.
    Other fields are warped anew in each interval.

    ``b`` is cut to ``(1 - epsilon)`` times each gap, and the end times depend on the draw alone:
    asking again within a batch gives the same ones.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.2.

    Example:
        >>> from steer_lightning.horizon import EndTimeDraw
        >>> horizon = GridHorizon()
        >>> horizon.perturb(EndTimeDraw(b="auto", key=3))
        >>> t_eval = torch.tensor([0.0, 0.5, 2.0])
        >>> rates = horizon.rates(t_eval[None], torch.tensor([3]))
        >>> bool(((rates > 0.0) & (rates < 2.0)).all())
        True
    """

    def check(self, draw: Draw) -> None:
        """Every draw fits: ``b`` is cut to each gap."""

    def describe(self) -> str:
        return "each interval of t_eval"

    def in_force(self) -> dict[str, float]:
        """Mean ratio of stretched to given interval lengths, in the last solve."""
        return {"stretch": 1.0 if self.drawn is None else self.drawn}

    def times(self, y0: Any) -> Tensor:
        """Raise a ``ValueError``: a grid has no times of its own."""
        raise ValueError("Expected `t_eval` with a GridHorizon, which has no times of its own.")

    def warp(
        self, vector_field: VectorField, t_eval: Tensor, y0: Any
    ) -> tuple[VectorField | list[WarpedField], Tensor]:
        draw = self.current_draw()
        if draw is None:
            return vector_field, t_eval
        check_problem(y0, t_eval)  # as a whole: its intervals would pass one by one
        y = first_part(y0)
        gaps = t_eval.cpu().double().diff()
        offsets = draw.offsets(gaps, len(y) if y.ndim else None, clip=True)
        if offsets is None:
            return vector_field, t_eval
        rates = 1.0 + offsets / gaps
        self.note(float(rates.detach().mean()))
        if rates.ndim == 1 and getattr(vector_field, "autonomous", False):
            return vector_field, _stretched(t_eval, rates)
        rates = rates.to(y.device, y.real.dtype)
        precision = t_eval.dtype if has_float64(y.device) else y.real.dtype
        # Tensors, as a compiled step would be compiled anew for each number; each its own, as an
        # adjoint would count the gradient of one that depends on the other twice.
        starts = t_eval[:-1].to(y.device, precision).unbind()
        warps = [TimeWarp(t.clone(), t.clone(), rates[..., i]) for i, t in enumerate(starts)]
        return [WarpedField(vector_field, warp) for warp in warps], t_eval

    def rates(self, times: Tensor, lengths: Tensor, reverse: bool = False) -> Tensor | None:
        """Stretch of each interval of series that have a time grid of their own.

        Samples whose intervals all have the same lengths share their end times, unless the draw is
        one for each sample; other samples have their own. With ``reverse`` the intervals are
        numbered from the last time on: the solution of an interval starts at its later end, and
        the earlier one moves.

        Args:
            times: Times of each sample, padded by the last one, shape ``(B, K)``.
            lengths: Number of times of each sample, shape ``(B,)``.
            reverse: Unroll from the last time.

        Returns:
            Ratio of stretched to nominal length of each interval, one in the padding, shape ``(B,
            K - 1)``; ``None`` if nothing is stretched.
        """
        draw = self.current_draw()
        if draw is None:
            return None
        order = unroll_order(lengths, times.shape[1], reverse)
        gaps = times.gather(1, order).cpu().double().diff(dim=1)
        moved = gaps != 0
        if not bool(moved.any()):
            return None
        shared = bool((gaps == gaps[:1]).all())
        drawn = gaps[0, moved[0]] if shared else gaps[moved]
        offsets = draw.offsets(drawn, len(gaps) if shared else 1, clip=True)
        if offsets is None:
            return None
        if shared:
            offsets = offsets.expand(len(gaps), -1)
        stretch = 1.0 + offsets.flatten() / gaps[moved]
        rates = torch.ones_like(gaps).masked_scatter(moved, stretch)
        self.note(float(rates[moved].detach().mean()))
        return rates.to(times)


def _stretched(t_eval: Tensor, rates: Tensor) -> Tensor:
    """The times, with the stretched intervals added up."""
    t_eval = exact(t_eval)
    gaps = rates.to(t_eval) * t_eval.diff()
    return torch.cat([t_eval[:1], t_eval[0] + gaps.cumsum(0)])


def unroll_order(lengths: Tensor, n_times: int, reverse: bool = False) -> Tensor:
    """Number of the observation that each sample's unroll meets as its i-th, shape ``(B, K)``.

    ``lengths`` are the observations of each sample, at least one, shape ``(B,)``, of ``n_times``.
    Padding repeats the last one met.

    Example:
        >>> unroll_order(torch.tensor([3, 2]), 3, reverse=True)
        tensor([[2, 1, 0],
                [1, 0, 0]])
    """
    last = lengths[:, None] - 1
    number = torch.minimum(torch.arange(n_times, device=lengths.device), last)
    return last - number if reverse else number
