"""Means, paired differences over seeds, and the time to reach a metric."""

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Literal, NamedTuple, TypeVar

from scipy.stats import t as student

from reproduce.records import Record, finished
from steer_lightning.callbacks.training_clock import Check

K = TypeVar("K", bound=Hashable)


class Summary(NamedTuple):
    """Mean and sample standard deviation, which is NaN for fewer than two values."""

    mean: float
    std: float
    n: int


class Paired(NamedTuple):
    """Mean difference of pairs, its confidence interval (NaN for one pair) and what it says."""

    mean: float
    low: float
    high: float
    n: int
    verdict: str

    @property
    def shows(self) -> float:
        """The smallest mean difference that an interval of this width shows: half of it."""
        return (self.high - self.low) / 2

    @property
    def excludes(self) -> float:
        """The size of a difference above which the interval excludes all."""
        return max(abs(self.low), abs(self.high))


def summary(values: Sequence[float]) -> Summary:
    """Mean and spread.

    Example:
        >>> summary([1.0, 3.0])
        Summary(mean=2.0, std=1.4142135623730951, n=2)
    """
    spread = len(values) > 1 and all(map(math.isfinite, values))
    return Summary(
        mean(values) if values else math.nan, stdev(values) if spread else math.nan, len(values)
    )


def paired(
    baseline: Mapping[K, float],
    other: Mapping[K, float],
    better: Literal["higher", "lower"],
    matters: float = 0.0,
) -> Paired:
    r"""Compare two variants seed by seed, with Student's 95 % interval of the mean difference.

    .. math:: \bar d \pm t_{n-1} \, s_d / \sqrt{n}, \qquad d_k = \text{other}_k - \text{baseline}_k

    An interval without zero is a "gain" or a "loss". One that excludes every difference larger
    than what ``matters`` is "no difference"; any other one has "not shown" anything.

    Example:
        >>> paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 3.1, 2: 4.2}, "higher").verdict
        'gain'
        >>> paired({0: 1.0, 1: 2.0}, {0: 1.1, 1: 1.9}, "higher", matters=0.5).verdict
        'not shown'
    """
    differences = [other[pair] - value for pair, value in baseline.items() if pair in other]
    middle, std, n = summary(differences)
    if n < 2 or math.isnan(std):
        verdict = ("no pairs", "one seed: no verdict", "not finite: no verdict")[min(n, 2)]
        return Paired(middle, math.nan, math.nan, n, verdict)
    half = float(student.ppf(0.975, n - 1)) * std / math.sqrt(n)
    found = Paired(middle, middle - half, middle + half, n, "not shown")
    if abs(middle) > half:
        return found._replace(verdict="gain" if (middle > 0.0) == (better == "higher") else "loss")
    return found._replace(verdict="no difference") if found.excludes <= matters else found


HELD = 3  # checks in a row that a level has to be held for


def reached(baseline: Sequence[Record], variant: Sequence[Record]) -> dict[int, Check | None]:
    """By seed, the check from which on a variant first holds the level of its baseline.

    A level is held from a check on if that and the two after it are at least as good. That of a
    baseline is the best one that it held itself, less the noise of its checks: the median change
    from one to the next in the second half of training. So neither a lucky check nor the last one
    decides. Seeds that either of them did not finish, or whose baseline held none, are left out.
    """
    others = {record.seed: record for record in finished(variant)}
    found: dict[int, Check | None] = {}
    for record in finished(baseline):
        if record.seed in others and not math.isnan(level := _level(record)):
            other = others[record.seed]
            from_here = zip(other.checks, _held(_signed(other)), strict=False)
            found[record.seed] = next((check for check, held in from_here if held >= level), None)
    return found


def _signed(record: Record) -> list[float]:
    """The monitored metric at each check, more being better."""
    sign = 1.0 if record.mode == "max" else -1.0
    return [sign * check.metrics.get(record.monitor, math.nan) for check in record.checks]


def _held(values: Sequence[float]) -> list[float]:
    """The level that is held from each value on, NaN if one of them is."""
    runs = [values[i : i + HELD] for i in range(len(values) - HELD + 1)]
    return [math.nan if any(map(math.isnan, run)) else min(run) for run in runs]


def _level(record: Record) -> float:
    """The best level that a run held, less its noise; NaN if it held none."""
    values = _signed(record)
    late = values[len(values) // 2 :]
    changes = [abs(b - a) for a, b in pairwise(late) if math.isfinite(b - a)]
    best = max((level for level in _held(values) if not math.isnan(level)), default=math.nan)
    return best - (median(changes) if changes else 0.0)
