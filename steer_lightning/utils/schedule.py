"""Numbers that change in the course of training."""

import math
from dataclasses import dataclass
from typing import Literal

from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.plain import as_plain

SHAPES = ("linear", "cosine", "exponential")


@dataclass(frozen=True)
class Schedule:
    r"""A number that goes from one value to another and stays there.

    With the share :math:`s` of its length that has gone by, from 0 to 1:

    .. math::
        \text{linear: } a + s\,(b - a), \qquad
        \text{cosine: } b + \tfrac12 (a - b)(1 + \cos \pi s), \qquad
        \text{exponential: } a\,(b/a)^s

    Args:
        start: First value, :math:`a`.
        end: Last value, :math:`b`.
        length: How long it changes, in ``unit``.
        shape: ``"linear"``, ``"cosine"`` or ``"exponential"``.
        unit: ``"step"`` counts steps of the optimiser, whatever is accumulated for each;
            ``"epoch"`` counts epochs.

    Raises:
        ValueError: If a value is not finite, the length is not positive, a name is unknown, or an
            exponential decay begins or ends at zero or changes sign.

    Example:
        >>> decay = Schedule(start=0.5, end=0.0, length=100)
        >>> decay.at(step=50, epoch=0), decay.at(step=500, epoch=0)
        (0.25, 0.0)
    """

    start: float
    end: float
    length: int
    shape: Literal["linear", "cosine", "exponential"] = "linear"
    unit: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        for name in ("start", "end", "length"):
            object.__setattr__(self, name, as_plain(getattr(self, name)))
        check_choice("shape", self.shape, SHAPES)
        check_choice("unit", self.unit, ("step", "epoch"))
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"Expected finite values, but got {self.start} to {self.end}.")
        if self.length < 1:
            raise ValueError(f"Expected `length` >= 1, but got {self.length}.")
        if self.shape == "exponential" and not self.start * self.end > 0.0:
            raise ValueError(
                f"Expected an exponential schedule between two values of one sign, but got "
                f"{self.start} to {self.end}. Use 'linear' or 'cosine' to reach zero."
            )

    @classmethod
    def constant(cls, value: float) -> "Schedule":
        """One value for all of the training."""
        return cls(value, value, 1)

    def at(self, *, step: int, epoch: int) -> float:
        """The value after so many steps of the optimiser, or epochs."""
        share = min(1.0, (step if self.unit == "step" else epoch) / self.length)
        if share == 1.0 or self.start == self.end:
            return self.end
        if self.shape == "linear":
            return self.start + share * (self.end - self.start)
        if self.shape == "cosine":
            swing = 0.5 * (1.0 + math.cos(math.pi * share))
            return self.end + swing * (self.start - self.end)
        return self.start * math.pow(self.end / self.start, share)

    @property
    def lowest(self) -> float:
        """The smallest value it takes."""
        return min(self.start, self.end)

    @property
    def highest(self) -> float:
        """The largest value it takes."""
        return max(self.start, self.end)

    def __repr__(self) -> str:
        if self.start == self.end:
            return f"Schedule.constant({self.start:g})"
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"Schedule({values})"

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.start:g}"
        return f"{self.start:g} to {self.end:g}, {self.shape}, {self.length} {self.unit}s"
