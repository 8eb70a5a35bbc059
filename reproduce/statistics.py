"""Means, paired differences over seeds, and the time to reach a metric."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Literal, NamedTuple

from scipy.stats import t as student

from reproduce.experiments import Better
from reproduce.records import Record, finished
from steer_lightning.callbacks.training_clock import Check

Verdict = Literal[
    "gain", "loss", "no difference", "one seed: no verdict", "no pairs", "not finite: no verdict"
]


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
    verdict: Verdict


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
    better: Better,
    level: float = 0.95,
) -> Paired:
    r"""Compare two variants seed by seed, with Student's interval of the mean difference.

    .. math:: \bar d \pm t_{n-1} \, s_d / \sqrt{n}, \qquad d_k = \text{other}_k - \text{baseline}_k

    Example:
        >>> paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 3.1, 2: 4.2}, "higher").verdict
        'gain'
        >>> paired({0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}, "higher").verdict
        'no difference'
    """
    differences = [other[seed] - value for seed, value in baseline.items() if seed in other]
    n = len(differences)
    middle, std, _ = summary(differences)
    if n == 0:
        return Paired(middle, math.nan, math.nan, n, "no pairs")
    if n == 1:
        return Paired(middle, math.nan, math.nan, n, "one seed: no verdict")
    if math.isnan(std):
        return Paired(middle, math.nan, math.nan, n, "not finite: no verdict")
    low = high = middle
    if std > 0.0:  # equal differences are no distribution for scipy
        low, high = map(float, student.interval(level, n - 1, middle, std / math.sqrt(n)))
    verdict: Verdict = "no difference"
    if low > 0.0 or high < 0.0:
        verdict = "gain" if (low > 0.0) == (better == "higher") else "loss"
    return Paired(middle, low, high, n, verdict)


def first_reaching(checks: Sequence[Check], name: str, target: float, mode: str) -> Check | None:
    """The first check whose metric is at least as good as a target; ``None`` if none is."""
    for check in checks:
        value = check.metrics.get(name, math.nan)
        if value >= target if mode == "max" else value <= target:
            return check
    return None


def reached(baseline: Sequence[Record], variant: Sequence[Record]) -> dict[int, Check | None]:
    """By seed, the check at which a variant has the *last* check's metric of its baseline.

    Seeds that either of them did not finish, or checked never, are left out.
    """
    others = {record.seed: record for record in finished(variant)}
    found = {}
    for record in finished(baseline):
        target = record.checks[-1].metrics.get(record.monitor) if record.checks else None
        if record.seed in others and target is not None:
            checks = others[record.seed].checks
            found[record.seed] = first_reaching(checks, record.monitor, target, record.mode)
    return found
