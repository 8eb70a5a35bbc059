"""Draw a metric against the evaluation end time, from the tables of EndTimeSweep, and print means.

python scripts/sweeps.py --output sweep.png NODE=logs/a/.../end_time_sweep_test.csv NODE=logs/b/...

Tables of one label, seeds of one experiment, are averaged; a band shows their range.
"""

import argparse
import csv
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

Sweeps = dict[str, list[list[float]]]


def read_sweep(path: Path, metric: str) -> tuple[list[float], list[float]]:
    """End times, and the metric at each of them.

    Raises:
        ValueError: If the table has no such column.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        raise ValueError(
            f"Expected a column {metric!r} in {path}, but got {[*rows[0]] if rows else []}."
        )
    return [float(row["end_time"]) for row in rows], [float(row[metric]) for row in rows]


def read_sweeps(arguments: list[str], metric: str) -> tuple[list[float], Sweeps]:
    """End times that all tables share, and the values of each label's tables.

    Raises:
        ValueError: If two tables have other end times.
    """
    sweeps: Sweeps = {}
    times: list[float] = []
    for argument in arguments:
        label, _, path = argument.partition("=")
        found, values = read_sweep(Path(path), metric)
        if times and found != times:
            raise ValueError(f"Expected equal end times in all tables, but {path} has others.")
        times = found
        sweeps.setdefault(label, []).append(values)
    return times, sweeps


def table(times: list[float], sweeps: Sweeps, metric: str) -> str:
    """Mean over the tables of each label, at each end time."""
    rows = [[metric, *(f"{t:.2f}" for t in times)], ["---"] * (len(times) + 1)]
    for label, tables in sweeps.items():
        rows.append([label, *(f"{mean(values):.3f}" for values in zip(*tables, strict=True))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(times: list[float], sweeps: Sweeps, metric: str) -> Figure:
    """A line for each label, and a band over its tables."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for i, (label, tables) in enumerate(sweeps.items()):
        columns = list(zip(*tables, strict=True))
        axis.plot(times, [mean(c) for c in columns], color=f"C{i}", marker="o", ms=3, label=label)
        axis.fill_between(times, *([f(c) for c in columns] for f in (min, max)),
                          color=f"C{i}", alpha=0.2, lw=0)  # fmt: skip
    axis.set(xlabel="evaluation end time T", ylabel=metric)
    axis.legend()
    return figure


def main() -> None:
    """Read the arguments, print the table, save the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", metavar="LABEL=CSV", help="tables to compare")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--output", type=Path, required=True, help="plot to write")
    arguments = parser.parse_args()
    times, sweeps = read_sweeps(arguments.tables, arguments.metric)
    print(table(times, sweeps, arguments.metric))
    draw(times, sweeps, arguments.metric).savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
