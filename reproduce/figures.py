"""Plots of experiments, from their records and from what callbacks drew."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from statistics import geometric_mean, mean
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from reproduce.experiments import Experiment, Variant
from reproduce.pareto import front, mean_points, test_evaluations
from reproduce.records import Record, Results, by_seed, finished
from steer_lightning.callbacks.plots.style import COLOURS, in_words, legend_below, panels

# For readers who tell no colours apart.
_MARKERS = "osD^v<>PXp*hd8H"


def draw_curves(experiment: Experiment, results: Results) -> Figure:
    """The validation metric against seconds of training, a panel for each comparison."""
    parts = [p for p in experiment.comparisons if any(finished(results[a]) for a in p.variants)]
    parts = parts or [*experiment.comparisons[:1]]  # an empty panel says that nothing has run
    figure, axes = _panels(len(parts))
    colours = _colours()
    for axis, part in zip(axes, parts, strict=True):
        axis.set(title=part.setting, xlabel="training time (s)")
        for variant in part.variants:
            for j, record in enumerate(finished(results[variant])):
                axis.plot(
                    [getattr(check, record.clock) for check in record.checks],
                    [check.metrics.get(record.monitor, math.nan) for check in record.checks],
                    color=colours[variant.label], lw=1.0, marker="o", ms=2,
                    label=None if j else variant.label,
                )  # fmt: skip
                axis.set_ylabel(in_words(record.monitor))
                if record.clock == "cpu_seconds":
                    axis.set_xlabel("training time (processor seconds)")
    legend_below(figure)
    return figure


def draw_sweeps(experiment: Experiment, results: Results) -> Figure:
    """The first metric against the end time of evaluation, mean and range over seeds."""
    name = experiment.metrics[0].key.removeprefix("sweep/").partition("@")[0]
    factor = experiment.metrics[0].factor
    figure, axes = _panels(len(experiment.comparisons))
    colours = _colours()
    for axis, part in zip(axes, experiment.comparisons, strict=True):
        for variant in part.variants:
            columns: dict[float, list[float]] = {}
            for record in finished(results[variant]):
                if name in record.sweep:
                    for t, v in zip(record.sweep["end_time"], record.sweep[name], strict=True):
                        columns.setdefault(t, []).append(factor * v)
            _band(axis, columns, colours[variant.label], variant.label)
        ylabel = in_words(name) + " (%)" * (factor == 100.0)
        axis.set(title=part.setting, xlabel="end time of evaluation T", ylabel=ylabel)
    legend_below(figure)
    return figure


def montage(experiment: Experiment, results: Results, name: str) -> Figure:
    """Plots that a callback drew in the test of each variant's first finished seed that has one.

    A row for each comparison, or several: as many side by side as are 1.8 inches high. Nothing if
    a variant has finished runs, but none with its plot, as of another machine.
    """
    rows, width = [], 9.0
    for part in experiment.comparisons:
        row = []
        for variant in part.variants:
            records = finished(results[variant])
            paths = [record.folder / "logs" / "plots" / f"{name}.png" for record in records]
            there = [path for path in paths if path.is_file()]
            if paths and not there:
                return Figure()
            row += [(f"{part.setting}: {variant.label}", imread(path)) for path in there[:1]]
        ratio = max((image.shape[1] / image.shape[0] for _, image in row), default=1.0)
        side_by_side = max(1, int(width / (1.8 * ratio)))
        rows += [row[i : i + side_by_side] for i in range(0, len(row), side_by_side)]
    n_columns = max(map(len, rows), default=1)
    heights = [
        0.3 + max(width / n_columns * image.shape[0] / image.shape[1] for _, image in row)
        for row in rows
    ] or [1.0]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), n_columns, squeeze=False, height_ratios=heights)
    for axis in grid.flat:
        axis.axis("off")
    for axes, row in zip(grid, rows, strict=False):
        for axis, (label, image) in zip(axes, row, strict=False):
            axis.imshow(image)
            axis.set_title(label, loc="left", fontsize=9 if n_columns == 1 else 7)
    return figure


draw_flows = partial(montage, name="flow_test")
draw_trajectories = partial(montage, name="trajectory_test")
draw_series = partial(montage, name="series_test")


def draw_against_numbers(experiment: Experiment, results: Results, axis_name: str) -> Figure:
    """Every metric against a number that each variant's label or setting ends with.

    Settings ``"<panel>, <axis_name> = <number>"`` give a line for each label; else labels
    ``"<axis_name> = <number>"`` give one line.
    """
    lines: dict[str, dict[str, dict[float, Sequence[Record]]]] = {}
    for part, variant in experiment.pairs:
        panel, number = _number(part.setting, axis_name)
        line = variant.label.partition(f", {axis_name} = ")[0]
        if number is None:
            line, number = "", _number(variant.label, axis_name)[1]
        if number is not None:
            lines.setdefault(panel, {}).setdefault(line, {})[number] = finished(results[variant])
    metrics = experiment.metrics
    size = 4.0 * len(lines), 2.8 * len(metrics)
    figure, grid = panels(len(metrics), max(1, len(lines)), size)
    colours = _colours()
    for axes, metric in zip(grid, metrics, strict=True):
        for axis, (panel, found) in zip(axes, lines.items(), strict=False):
            for line, by_number in found.items():
                columns = {
                    x: [metric.factor * v for r in rs if (v := r.value(metric.key)) is not None]
                    for x, rs in sorted(by_number.items())
                }
                columns = {x: column for x, column in columns.items() if column}
                middle = geometric_mean if metric.ratio else mean  # as in the tables
                _band(axis, columns, colours[line], line, middle)
            axis.set_ylabel(fill(metric.label, 26))
            if metric is metrics[0]:
                axis.set_title(panel)
            if metric is metrics[-1]:
                axis.set_xlabel(_NUMBERS[axis_name])
            if metric.ratio and len(axis.lines):
                axis.set(xscale="log", yscale="log")
    legend_below(figure)
    return figure


_NUMBERS = {"r": "stiffness ratio r", "b": "half-width b (in units of t)"}
draw_stiffness = partial(draw_against_numbers, axis_name="r")
draw_against_b = partial(draw_against_numbers, axis_name="b")


def draw_pareto(experiment: Experiment, results: Results) -> Figure:
    """The first metric against test evaluations; rings and a line mark the front of the means.

    Points are means over the seeds, with their range. Variants that differ by their weight share
    a colour and a marker, which is larger for more weight.
    """
    cost, metric = test_evaluations(experiment), experiment.metrics[0]
    families = list(dict.fromkeys(_family(variant) for variant in experiment.variants))
    looks: dict[str, dict[str, Any]] = {
        family: {"color": COLOURS[i % len(COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, family in enumerate(families)
    }
    ring: dict[str, Any] = {
        "color": "0.5",
        "ls": "--",
        "lw": 0.8,
        "marker": "o",
        "ms": 13,
        "mfc": "none",
    }
    figure, axes = _panels(len(experiment.comparisons))
    for axis, part in zip(axes, experiment.comparisons, strict=True):
        points = mean_points(part, cost, metric, results)
        sizes = dict.fromkeys(families, 4.0)
        for variant, (x, y) in points.items():
            xs, ys = (by_seed(results[variant], m).values() for m in (cost, metric))
            # A geometric mean of equal values is off by rounding.
            y_range, x_range = (
                [[max(z - min(zs), 0.0)], [max(max(zs) - z, 0.0)]] for z, zs in ((y, ys), (x, xs))
            )
            family = _family(variant)
            axis.errorbar(x, y, y_range, x_range, lw=0.6, ms=sizes[family], **looks[family])
            sizes[family] += 2.0
        best = [points[variant] for variant in front(points, metric.better == "higher")]
        axis.plot([x for x, _ in best], [y for _, y in best], **ring)
        if best:
            _leave_out_far(axis, [y for _, y in best], [y for _, y in points.values()])
        axis.set(title=part.setting, xlabel=cost.label, ylabel=metric.label)
    handles = [Line2D([], [], ls="", **look) for look in looks.values()]
    names = [*families, "Pareto front"]
    figure.legend(
        [*handles, Line2D([], [], **ring)], names, loc="outside right center", fontsize=7
    )
    return figure


def _leave_out_far(axis: Axes, front: Sequence[float], heights: Sequence[float]) -> None:
    """End the axis at twice the front's height beyond it; what lies outside is told in words."""
    low, high = min(front), max(front)
    far = [y for y in heights if not 3 * low - 2 * high <= y <= 3 * high - 2 * low]
    near = [y for y in heights if y not in far]
    if far and (height := max(near) - min(near)):
        axis.set_ylim(min(near) - 0.15 * height, max(near) + 0.1 * height)
        words = f"not shown: {', '.join(f'{y:.3g}' for y in sorted(far))}"
        axis.text(0.02, 0.02, words, transform=axis.transAxes, fontsize=7)


def _family(variant: Variant) -> str:
    return variant.label.partition(", weight ")[0]


def _number(text: str, name: str) -> tuple[str, float | None]:
    before, found, number = text.rpartition(f"{name} = ")
    return (before.rstrip(", "), float(number)) if found else (text, None)


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    columns = min(3, max(1, n))
    rows = max(1, math.ceil(n / columns))
    figure, grid = panels(rows, columns, (4.2 * columns, 3.0 * rows))
    axes = [axis for row in grid for axis in row]
    for axis in axes[n:]:
        axis.axis("off")
    return figure, axes[:n]


def _band(
    axis: Axes,
    columns: Mapping[float, Sequence[float]],
    colour: str,
    label: str,
    middle: Callable[[Sequence[float]], float] = mean,
) -> None:
    """Mean and range of the values at each place, if there are any."""
    if columns:
        low, means, high = ([f(c) for c in columns.values()] for f in (min, middle, max))
        axis.plot([*columns], means, color=colour, marker="o", ms=3, label=label)
        axis.fill_between([*columns], low, high, color=colour, alpha=0.2, lw=0)


def _colours() -> dict[str, str]:
    """One colour for each label, over all panels of a figure."""
    return defaultdict(cycle(COLOURS).__next__)
