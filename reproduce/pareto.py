"""Variants as points of cost and metric, and those that no other beats."""

import math
from collections.abc import Hashable, Mapping
from statistics import mean
from typing import TypeVar

from reproduce.experiments import Comparison, Experiment, Metric, Variant
from reproduce.records import Results, by_seed

K = TypeVar("K", bound=Hashable)


def test_evaluations(experiment: Experiment) -> Metric:
    """The metric that counts evaluations in test."""
    return next(m for m in experiment.metrics if m.key.startswith("test/nfe_forward"))


def mean_points(
    part: Comparison, cost: Metric, metric: Metric, results: Results
) -> dict[Variant, tuple[float, float]]:
    """Means over the seeds of cost and metric, of the variants that have both."""
    found = {}
    for variant in part.variants:
        columns = [by_seed(results[variant], m).values() for m in (cost, metric)]
        point = [mean(column) if column else math.nan for column in columns]
        if all(map(math.isfinite, point)):
            found[variant] = (point[0], point[1])
    return found


def front(points: Mapping[K, tuple[float, float]], higher: bool) -> list[K]:
    """Keys of the points that none other equals or beats in both, by cost; equal points stay.

    Args:
        points: Cost, of which less is better, and metric.
        higher: Whether more of the metric is better.

    Example:
        >>> front({"a": (1.0, 0.8), "b": (2.0, 0.9), "c": (3.0, 0.85)}, higher=True)
        ['a', 'b']
    """
    sign = -1.0 if higher else 1.0
    signed = {key: (cost, sign * metric) for key, (cost, metric) in points.items()}
    best = [
        key
        for key, p in signed.items()
        if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in signed.values())
    ]
    return sorted(best, key=lambda key: signed[key])
