"""What a training solve shows of its trajectory, at random times inside its span."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steer_lightning.horizon import WarpedField
from steer_lightning.solvers import Solution, Steps
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.problem import VectorField, first_part, held_by, holding
from steer_lightning.utils.seeding import stream
from steer_lightning.utils.watching import unseen

Time = float | Tensor


@dataclass(frozen=True)
class Probed:
    """One solve, seen at its ends and at random times in between; times are actual ones.

    Attributes:
        vector_field: ``f(t, y)``, of the state alone: a density beside it is left out.
        t: Probe times, independent and uniform in the span; each of shape ``()``, or ``(B,)``
            where samples have spans of their own.
        y: States there, each ``(B, ...)``.
        ends: Times of the first and the last state, shape ``()`` or ``(B,)``.
        y_ends: Those states; none of an attached field, of which one evaluation is seen.
        length: ``|t1 - t0|``, a number or of shape ``()`` or ``(B,)``.
        rate: Actual time per unit of the times of ``steps``, a number or of shape ``(B,)``.
        generator: A random stream on the device of the state, for a penalty's own noise.
        steps: The accepted steps, where a penalty asked for them and the solver has them.
        n_solves: How many solves this one stands for.
        shares: Of the span, what lies before each probe, in float64 where ``t`` may not be; none
            where the span is unknown.
        direction: Of time, 1.0 or -1.0.
    """

    vector_field: VectorField
    t: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    ends: tuple[Tensor, Tensor]
    y_ends: tuple[Tensor, ...]
    length: Time
    generator: torch.Generator
    steps: Steps | None = None
    rate: Time = 1.0
    n_solves: float = 1.0
    shares: tuple[float, ...] = ()
    direction: float = 1.0

    def first(self, n: int) -> "Probed":
        """What is seen at the first ``n`` probe times."""
        return replace(self, t=self.t[:n], y=self.y[:n], shares=self.shares[:n])


@dataclass
class Probing:
    """A request to look at the training solves of one block, and what was seen.

    Args:
        n_times: Probe times in each solve.
        steps: Whether to keep the accepted steps.
        key: Identity of the random stream, another for each batch.
    """

    n_times: int
    steps: bool = False
    key: int = 0
    seen: list[Probed] = field(default_factory=list)

    def __reduce__(self) -> Any:
        """A copy has seen nothing: what was seen belongs to the graph of a loss."""
        return Probing, (self.n_times, self.steps, self.key)

    def times(self, times: Tensor) -> Tensor:
        """Probe times of a solve, inside the span of its times, in its order.

        At the same share of each solve of a batch, so that a checkpoint repeats its own. They
        move with the ends of the solve, which may have a gradient.
        """
        t0, t1 = times[[0, -1]].cpu().double()
        inside = t0 + self._shares().sort().values * (t1 - t0)
        return inside.to(times.device, times.dtype)

    def _shares(self) -> Tensor:
        """Of the span, before each probe, in the order of their draw."""
        generator = stream("cpu", self.key, 0)
        shares = torch.rand(self.n_times, generator=generator, dtype=torch.float64)
        return shares.clamp(1e-6, 1.0 - 1e-6)

    def see(
        self, base: VectorField, solved: VectorField, times: Tensor, t: Tensor, y: Any, s: Solution
    ) -> None:
        """Keep what a solve at ``times`` has shown, with states ``y``, ``(P, B, ...)``, at ``t``.

        ``base`` is the block's own field, of the state alone; ``solved`` is what was solved,
        perhaps seen through a warp.
        """
        rate: Time = 1.0
        actual = [times[0], *t, times[-1]]
        while isinstance(solved, WarpedField):
            warp = solved.warp
            actual = [warp.actual(x) for x in actual]
            rate, solved = rate * warp.rate, solved.vector_field
        y, ends = first_part(y), first_part(s.ys)
        device, dtype = y.device, y.real.dtype
        first, *inner, last = (x.to(device, dtype) for x in actual)
        shares, span = self._shares(), (times[-1] - times[0]).to(device, dtype) * rate
        drawn = shares.argsort().argsort().tolist()  # where in the solve each one is
        generator = stream(device, self.key, "noise", len(self.seen))
        probed = Probed(
            _as_now(base), tuple(inner[i] for i in drawn), tuple(y[i] for i in drawn),
            (first, last), (ends[0], ends[-1]), span.abs(), generator, s.steps, rate,
            shares=tuple(shares.tolist()), direction=float(span.detach().flatten()[0].sign()),
        )  # fmt: skip
        if not in_backward():  # what a checkpoint repeats was seen in its forward pass
            self.seen.append(probed)


def _as_now(vector_field: VectorField) -> VectorField:
    """A field with what it holds now, such as a condition that another solve will replace."""
    held = held_by(vector_field)

    def field(t: Tensor, y: Any) -> Any:
        with unseen(vector_field), holding(held):
            return vector_field(t, y)

    return field
