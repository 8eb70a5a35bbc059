"""Steps that were good in the last batch, to begin the next one with."""

from torch import Tensor


class StepMemory:
    """The first step that a block's last training solve found good, in each direction of time.

    Steps are kept in nominal time and scale with an interval that STEER moves. A solve that starts
    at another nominal time than the last one starts afresh.

    Attributes:
        steps: Nominal start and length of the first step, by direction (1 or -1).
    """

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, float]] = {}

    def recall(self, times: Tensor, nominal: Tensor) -> float | None:
        """A step to try first in a solve at ``times`` that stand for ``nominal`` ones."""
        start, direction, stretch = _interval(times, nominal)
        kept_start, step = self.steps.get(direction, (start, 0.0))
        return step * stretch if step and kept_start == start else None

    def keep(self, step: float | None, times: Tensor, nominal: Tensor) -> None:
        """Keep a step of such a solve; ``None`` keeps nothing."""
        if step is not None:
            start, direction, stretch = _interval(times, nominal)
            self.steps[direction] = (start, step / stretch)


def _interval(times: Tensor, nominal: Tensor) -> tuple[float, int, float]:
    """Nominal start, direction, and length of the solve in units of the nominal one."""
    (t0, t1), (s0, s1) = (x.detach()[[0, -1]].tolist() for x in (times, nominal))
    return s0, 1 if s1 > s0 else -1, (t1 - t0) / (s1 - s0)
