"""Means, paired differences over seeds, and the time to reach a metric."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Literal, NamedTuple

from scipy.stats import t as student

from reproduce.records import Record, finished
from steer_lightning.callbacks.training_clock import Check


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
    baseline: Mapping[int, float],
    other: Mapping[int, float],
    better: Literal["higher", "lower"],
    level: float = 0.95,
) -> Paired:
    r"""Compare two variants seed by seed, with Student's interval of the mean difference.

    .. math:: \bar d \pm t_{n-1} \, s_d / \sqrt{n}, \qquad d_k = \text{other}_k - \text{baseline}_k

    Example:
        >>> paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 3.1, 2: 4.2}, "higher").verdict
        'gain'
    """
    differences = [other[seed] - value for seed, value in baseline.items() if seed in other]
    middle, std, n = summary(differences)
    if n < 2 or math.isnan(std):
        verdict = ("no pairs", "one seed: no verdict", "not finite: no verdict")[min(n, 2)]
        return Paired(middle, math.nan, math.nan, n, verdict)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * std / math.sqrt(n)
    verdict = "no difference"
    if abs(middle) > half:
        verdict = "gain" if (middle > 0.0) == (better == "higher") else "loss"
    return Paired(middle, middle - half, middle + half, n, verdict)


def reached(baseline: Sequence[Record], variant: Sequence[Record]) -> dict[int, Check | None]:
    """By seed, the first check at which a variant has the *last* metric of its baseline.

    Equal is enough. Seeds that either of them did not finish, or checked never, are left out.
    """
    others = {record.seed: record.checks for record in finished(variant)}
    found: dict[int, Check | None] = {}
    for record in finished(baseline):
        target = record.checks[-1].metrics.get(record.monitor) if record.checks else None
        if record.seed in others and target is not None:
            sign = 1.0 if record.mode == "max" else -1.0
            found[record.seed] = next(
                (
                    check
                    for check in others[record.seed]
                    if sign * check.metrics.get(record.monitor, math.nan) >= sign * target
                ),
                None,
            )
    return found
