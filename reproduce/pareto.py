"""Variants as points of cost and metric: those that no other beats, and a table of all."""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import mean
from typing import TypeVar

from reproduce.experiments import Comparison, Experiment, Metric, Variant
from reproduce.records import Record, Results, by_seed
from reproduce.report import difference, markdown, metric_values, n_seeds
from reproduce.statistics import Paired

K = TypeVar("K", bound=Hashable)
FEWEST_SEEDS = 3  # for a verdict

VERDICT = (
    "Which variants bring **half the test evaluations at no loss**: over at least "
    f"{FEWEST_SEEDS} seeds the whole interval of the ratio of evaluations is at most 0.5, and "
    "that of the difference in {} excludes a loss of more than {:g}."
)
BRACKETS = (
    "In brackets: the difference to the baseline of the same seed, or the ratio for evaluations "
    "and seconds, with the interval; bold where that excludes no change. Means of evaluations and "
    "seconds are geometric. Weights are those of the last step. Worst: over eleven end times of "
    "evaluation, on the first two test batches; a gap where a solve failed. Seconds (of the "
    "processor, on a CPU) are those in training batches, with all that the penalties cost; "
    "they are compared at one commit and processor alone, some ratios of fewer seeds and some not "
    "at all. NFE leaves out a penalty's own evaluations."
)


def test_evaluations(experiment: Experiment) -> Metric:
    """The metric that counts evaluations in test."""
    return next(m for m in experiment.metrics if m.key.startswith("test/nfe_forward"))


def mean_points(
    part: Comparison, cost: Metric, metric: Metric, results: Results
) -> dict[Variant, tuple[float, float]]:
    """Cost and metric, as the tables show their means, of variants that have all seeds.

    Those are the baseline's: a mean over other seeds says nothing beside it.
    """
    found = {}
    seeds = by_seed(results[part.baseline], metric).keys()
    for variant in part.variants:
        columns = [metric_values(results[variant], m) for m in (cost, metric)]
        if not seeds or any(seeds - column.keys() for column in columns):
            continue
        x, y = (mean(column[seed] for seed in seeds) for column in columns)
        if math.isfinite(x) and math.isfinite(y):
            found[variant] = (math.exp(x) if cost.ratio else x, y)
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


def write_tables(experiment: Experiment, results: Results) -> str:
    """The verdict, how to read the table, and a table for each comparison."""
    metric = experiment.metrics[0]
    cost = test_evaluations(experiment)
    verdicts, tables = [], []
    for part in experiment.comparisons:
        verdicts.append(f"- {half_the_evaluations(part, cost, metric, results)}")
        rows = [["variant", "n", *(m.label for m in experiment.metrics)]]
        for variant in part.variants:
            base = [] if variant is part.baseline else results[part.baseline]
            own = results[variant]
            columns = [cell(m, base, own) for m in experiment.metrics]
            n = n_seeds(by_seed(own, metric), by_seed(base or own, metric))
            rows.append([variant.label, n, *columns])
        best = front(mean_points(part, cost, metric, results), metric.better == "higher")
        tables.append(
            f"### {part.setting}\n\n{markdown(rows)}\n\n"
            f"On the front of {metric.label} against test evaluations (means): "
            f"{'; '.join(variant.label for variant in best) or 'nothing yet'}."
        )
    return "\n\n".join(
        [VERDICT.format(metric.label, metric.matters), "\n".join(verdicts), BRACKETS, *tables]
    )


def half_the_evaluations(part: Comparison, cost: Metric, metric: Metric, results: Results) -> str:
    """One line: the variants that halve the cost at no loss of the metric, or that none does."""
    seen, base = [], results[part.baseline]
    sign = -1.0 if metric.better == "higher" else 1.0
    for variant in part.others:
        ratio, change = (difference(m, base, results[variant]) for m in (cost, metric))
        if min(ratio.n, change.n) >= FEWEST_SEEDS and math.isfinite(ratio.high + change.high):
            lost = max(sign * change.low, sign * change.high) > metric.matters + 1e-9
            words = f"{variant.label} ({show(cost, ratio)}; {show(metric, change)})"
            seen.append((lost, ratio.high > math.log(0.5) + 1e-9, ratio.mean, words))
    if not seen:
        return f"{part.setting}: no verdict, which takes {FEWEST_SEEDS} seeds."
    kept = [(more, words) for lost, more, _, words in sorted(seen) if not lost]
    of = f"of {len(seen)} variants"
    if halves := [words for more, words in kept if not more]:
        return f"**{part.setting}, {len(halves)} {of}:** {'; '.join(halves)}."
    least = kept[0][1] if kept else "there is none"
    return f"**{part.setting}: none {of}.** The fewest evaluations without a loss: {least}."


def cell(metric: Metric, base: Sequence[Record], own: Sequence[Record]) -> str:
    """Mean over the seeds and, in brackets, the comparison with the baseline."""
    values = [*metric_values(own, metric).values()]
    if not values:
        return " / ".join(dict.fromkeys(record.status for record in own)) or "pending"
    if not all(map(math.isfinite, values)):
        return "gap"
    middle = mean(values)
    shown = f"{math.exp(middle) if metric.ratio else middle:,.{metric.digits}f}"
    found = difference(metric, base, own)
    return f"{shown} ({show(metric, found)})" if math.isfinite(found.mean) else shown


def show(metric: Metric, found: Paired) -> str:
    """A difference or ratio with its interval, bold if that excludes no change."""
    numbers = [f"{value:+.{metric.digits}f}" for value in found[:3]]
    if metric.ratio:
        numbers = [f"{math.exp(min(value, 700.0)):.2f}" for value in found[:3]]
    text = ("x " * metric.ratio) + numbers[0]
    if not math.isfinite(found.low):
        return text
    text += f" [{numbers[1]}, {numbers[2]}]"
    return f"**{text}**" if found.low > 0.0 or found.high < 0.0 else text
