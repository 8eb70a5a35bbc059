"""What all penalties have in common."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.solvers import Solver
from steer_lightning.utils.representation import Shown
from steer_lightning.utils.schedule import Schedule


class Penalty(Shown, ABC):
    """A regulariser of trajectories: a function of what a training solve shows.

    A penalty of your own gives :meth:`value`; ``n_times`` says at how many random times it looks,
    ``needs_steps`` whether it needs the accepted steps.

    Args:
        weight: Its factor in the loss, or a :class:`~steer_lightning.utils.schedule.Schedule`.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> class Size(Penalty):
        ...     def value(self, probed):
        ...         return probed.y[0].square().mean()
        >>> Size(weight=0.1).name
        'size'
    """

    n_times = 1
    needs_steps = False
    solvers = "any solver"

    def __init__(self, weight: float | Schedule) -> None:
        self.weight = weight if isinstance(weight, Schedule) else Schedule.constant(weight)
        if not self.weight.lowest >= 0.0:
            raise ValueError(
                f"Expected the weight of {type(self).__name__} to be >= 0, but got {weight}."
            )

    @property
    def name(self) -> str:
        """As it is logged, ``local_error`` for ``LocalError``."""
        letters = (f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return "".join(letters).strip("_")

    def fits(self, solver: Solver) -> bool:
        """Whether a block's solver has what this needs; ``solvers`` says in words which do."""
        return True

    @abstractmethod
    def value(self, probed: Probed) -> Tensor:
        """The penalty of one solve, a mean over the batch, shape ``()``."""


def integrated_square(x: Tensor, probed: Probed) -> Tensor:
    """Integral over the span of the mean square of ``x``, shape ``(B, ...)``, at a uniform time.

    A one-point estimate, averaged over the batch, in float32 at least.
    """
    x = by_sample(x)
    x = x.abs() if x.is_complex() else x
    exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (probed.length * exact.square().mean(1)).mean()


def mean_rate(probed: Probed) -> float | Tensor:
    """Actual time per unit of a step's own time, its mean where samples have own rates."""
    rate = probed.rate
    return rate.abs().mean() if isinstance(rate, Tensor) else abs(rate)


def by_sample(x: Tensor) -> Tensor:
    """A state as a matrix with a row for each sample; a scalar has one row."""
    return x.reshape(x.shape or (1,))[..., None].flatten(1)
