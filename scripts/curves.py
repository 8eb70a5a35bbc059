"""Draw a metric of several runs against time, from their TensorBoard logs, and print a table.

python scripts/curves.py --output curves.png RNODE=logs/a/version_0 RNODE=logs/b/version_0

Runs of one label share a colour: seeds of one experiment.
"""

import argparse
from bisect import bisect_right
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = list[tuple[float, float]]


def read_curve(folder: Path, metric: str, against: str) -> Curve:
    """Pairs of ``against`` and ``metric``, matched by step.

    Raises:
        ValueError: If the run did not log one of them.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Tags()["scalars"]
    for name in (metric, against):
        if name not in logged:
            raise ValueError(f"Expected {name!r} in the logs of {folder}, but got {logged}.")
    clock = events.Scalars(against)
    steps = [event.step for event in clock]
    curve = []
    for event in events.Scalars(metric):
        place = bisect_right(steps, event.step) - 1
        if place >= 0:
            curve.append((clock[place].value, event.value))
    return curve


def table(runs: list[tuple[str, Curve]], metric: str, against: str, n: int = 6) -> str:
    """Each run's metric at ``n`` evenly spaced checks, with the time it took."""
    header = ["run", *(f"check {i + 1} of {n}" for i in range(n))]
    rows = [header, ["---"] * len(header)]
    for label, curve in runs:
        picked = [curve[max(0, round((i + 1) * len(curve) / n) - 1)] for i in range(n)]
        rows.append([label, *(f"{value:.3f} ({time:.0f})" for time, value in picked)])
    title = f"{metric}, and {against} in brackets"
    return "\n".join([title, "", *("| " + " | ".join(row) + " |" for row in rows)])


def draw(runs: list[tuple[str, Curve]], metric: str, against: str) -> Figure:
    """All curves in one plot."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    labels = list(dict.fromkeys(label for label, _ in runs))
    seen = set()
    for label, curve in runs:
        times, values = zip(*curve, strict=True)
        colour = f"C{labels.index(label)}"
        axis.plot(times, values, color=colour, marker="o", ms=3,
                  label=None if label in seen else label)  # fmt: skip
        seen.add(label)
    axis.set(xlabel=against, ylabel=metric)
    axis.legend()
    return figure


def main() -> None:
    """Read the arguments, print the table, save the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER", help="runs to compare")
    parser.add_argument("--metric", default="val/bits_per_dim")
    parser.add_argument("--against", default="train/seconds")
    parser.add_argument("--limits", nargs=2, type=float, metavar=("LOW", "HIGH"), default=None,
                        help="range of the metric in the plot")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="plot to write")
    arguments = parser.parse_args()
    runs = []
    for run in arguments.runs:
        label, _, folder = run.partition("=")
        runs.append((label, read_curve(Path(folder), arguments.metric, arguments.against)))
    print(table(runs, arguments.metric, arguments.against))
    figure = draw(runs, arguments.metric, arguments.against)
    if arguments.limits is not None:
        figure.axes[0].set_ylim(*arguments.limits)
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
