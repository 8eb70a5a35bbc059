"""Draws of STEER's end times: pure functions of a key, away from global random state."""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from steer_lightning.utils.checks import check_choice

Distribution = Literal["uniform", "normal"]
Scope = Literal["batch", "rank", "sample"]
HalfWidth = float | Literal["auto"]

DISTRIBUTIONS: Final = ("uniform", "normal")
SCOPES: Final = ("batch", "rank", "sample")


def end_time_offset(u: Tensor, b: Tensor, distribution: Distribution = "uniform") -> Tensor:
    r"""Map standard uniforms to offsets :math:`T - t_1` of the end time.

    .. math::
        \text{uniform: } T - t_1 = b\,(2u - 1), \qquad
        \text{normal: } T - t_1 = \tfrac{b}{2}\,
        \Phi^{-1}\big(\Phi(-2) + u\,(\Phi(2) - \Phi(-2))\big)

    The second is :math:`\mathcal{N}(0, (b/2)^2)` truncated at :math:`\pm b`, by inversion.

    Args:
        u: Uniforms in ``[0, 1)``, any shape, floating.
        b: Half-width of the interval, non-negative, broadcastable against ``u``.
        distribution: ``"uniform"`` or ``"normal"``; a ``ValueError`` if it is another.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Eq. 4.

    Example:
        >>> end_time_offset(torch.tensor([0.0, 0.5]), torch.tensor(0.5))
        tensor([-0.5000,  0.0000])
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    if distribution == "uniform":
        return b * (2.0 * u - 1.0)
    tail = 0.5 * math.erfc(math.sqrt(2.0))  # Phi(-2)
    z = torch.special.ndtri(tail + u * (1.0 - 2.0 * tail))
    return b * (0.5 * z).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class EndTimeDraw:
    """One draw of end times: everything that decides it, except the interval itself.

    Args:
        b: Half-width of the end-time interval, in units of time; ``"auto"`` means ``(1 -
            epsilon)`` times the length of each interval.
        epsilon: Fraction of an interval that ``b`` must leave between the end time and ``t0``; 1
            leaves no room for ``b``.
        distribution: ``"uniform"``: ``U(t1 - b, t1 + b)``; ``"normal"``: ``N(t1, (b/2)^2)``
            truncated to the same interval.
        scope: ``"sample"`` draws one end time along axis 0 of the state; ``"batch"`` and
            ``"rank"`` one for all of it.
        key: Seed of this draw's own random stream.

    Raises:
        ValueError: If a value is outside its range or a name is unknown.
    """

    b: HalfWidth
    epsilon: float = 1e-3
    distribution: Distribution = "uniform"
    scope: Scope = "batch"
    key: int = 0

    def __post_init__(self) -> None:
        if self.b != "auto" and not (
            isinstance(self.b, int | float) and math.isfinite(self.b) and self.b >= 0
        ):
            raise ValueError(f"Expected `b` to be 'auto' or finite and >= 0, but got {self.b!r}.")
        if not 0.0 < self.epsilon <= 1.0:
            raise ValueError(
                f"Expected `epsilon`, a fraction of an interval, in (0, 1], but got "
                f"{self.epsilon}."
            )
        check_choice("distribution", self.distribution, DISTRIBUTIONS)
        check_choice("scope", self.scope, SCOPES)

    @property
    def per_sample(self) -> bool:
        """Whether every sample of the batch gets an end time of its own."""
        return self.scope == "sample"

    def half_widths(self, gaps: Tensor, *, clip: bool) -> Tensor:
        """Half-width for each interval; ``clip`` cuts instead of raising."""
        limits = (1.0 - self.epsilon) * gaps.abs()
        if self.b == "auto":
            return limits
        b = torch.full_like(gaps, self.b)
        if clip:
            return torch.minimum(b, limits)
        if bool((b >= gaps.abs()).any()):
            raise ValueError(
                f"Expected 0 <= b < |t1 - t0| = {gaps.abs().min().item():g}, so that no end time "
                f"reaches t0, but got b = {self.b:g}. Lower b, or give b='auto' for "
                f"(1 - epsilon) |t1 - t0|."
            )
        return b

    def offsets(self, gaps: Tensor, batch_size: int | None, *, clip: bool) -> Tensor | None:
        """Offsets ``T - t1`` of the ends of intervals, shape ``(N,)``, or ``(B, N)``.

        ``None`` if every half-width is zero: ``b = 0`` changes nothing, not the last bit.

        Args:
            gaps: Interval lengths ``t1 - t0``, of either sign, shape ``(N,)``, float64 on the CPU.
            batch_size: Number of samples, for a draw for each.
            clip: Cut offsets that reach ``t0`` instead of raising a ``ValueError``.
        """
        b = self.half_widths(gaps, clip=clip)
        if not bool((b > 0).any()):
            return None
        shape = tuple(gaps.shape)
        if self.per_sample:
            if batch_size is None:
                raise ValueError(
                    "Expected a state with a batch along axis 0 for scope='sample', but got a "
                    "scalar. Use scope='batch', or give the state an axis: y0[None]."
                )
            shape = (batch_size, *shape)
        generator = torch.Generator().manual_seed(self.key)
        with torch._C._DisableFuncTorch():  # no noise that torch.func.vmap would have to refuse
            u = torch.rand(shape, generator=generator, dtype=torch.float64)
        return end_time_offset(u, b, self.distribution)


@dataclass(frozen=True)
class FixedOffset:
    """A draw that always moves the end of an interval by the same amount, to sweep over T.

    Example:
        >>> FixedOffset(0.25).offsets(torch.tensor([1.0]), None, clip=False)
        tensor([0.2500])
    """

    offset: float

    per_sample = False

    def offsets(self, gaps: Tensor, batch_size: int | None, *, clip: bool) -> Tensor | None:
        if bool((self.offset * gaps.sign() <= -gaps.abs()).any()):
            raise ValueError(
                f"Expected an offset that keeps the end time apart from t0, |t1 - t0| = "
                f"{gaps.abs().min().item():g}, but got {self.offset:g}."
            )
        return torch.full_like(gaps, self.offset)


Draw = EndTimeDraw | FixedOffset
