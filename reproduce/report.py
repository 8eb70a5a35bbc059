"""The page of an experiment in Markdown, from its records."""

import math
from collections.abc import Iterable, Mapping, Sequence

from reproduce.experiments import Experiment, Metric
from reproduce.records import Record, Results, finished
from reproduce.statistics import Paired, Summary, paired, reached, summary


def write_page(experiment: Experiment, results: Results, command: str = "") -> str:
    """The whole page: caption, a table for each metric, work, and what did not run."""
    machines = [
        _machine(record.machine) for records in results.values() for record in finished(records)
    ]
    tables = [experiment.tables(experiment, results)] if experiment.tables else [
        *(metric_table(experiment, metric, results) for metric in experiment.metrics),
        work_table(experiment, results),
    ]  # fmt: skip
    parts = [
        f"## {experiment.title}",
        f"    {command}" if command else "",
        caption(experiment, results),
        *tables,
        missing_runs(experiment, results),
        "\n".join(dict.fromkeys(machines)) or "Nothing has run.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def caption(experiment: Experiment, results: Results) -> str:
    """Scale, cuts, seeds and how to read the numbers."""
    seeds = sorted({record.seed for variant in experiment.variants for record in results[variant]})
    words = ", ".join(map(str, seeds))
    first = {
        "paper": "Reproduction at the paper's scale.",
        "full": "In full length, but **not the paper's setting.**",
    }.get(experiment.scale, f"**Scale `{experiment.scale}`, not a reproduction.**")
    text = (
        f"{first} {experiment.cut} "
        f"{'Seed' if len(seeds) == 1 else 'Seeds'} {words} (weights, noise and end times; the "
        "data and its split are the same). Mean +- sample standard deviation over the seeds. A "
        "difference is to the baseline of the same seed, with Student's paired 95 % interval; "
        'where that holds zero, the words are "no difference".'
    ).replace("  ", " ")
    if len(seeds) == 2:
        text += " Two seeds can show only differences that are far larger than their spread."
    return "\n\n".join([text, *experiment.notes])


def metric_table(experiment: Experiment, metric: Metric, results: Results) -> str:
    """One metric of every variant, beside the paper's if it is the first."""
    first = metric is experiment.metrics[0]
    with_paper = first and any(variant.paper for variant in experiment.variants)
    against = "ratio to baseline" if metric.ratio else "difference"
    rows = [
        ["setting", "variant", *(["paper"] if with_paper else []), metric.label, "n",
         f"{against} [95 %]", "verdict"]
    ]  # fmt: skip
    for part, variant in experiment.pairs:
        values = _values(results[variant], metric)
        found = summary([*values.values()])
        shown = _show_summary(found, metric)
        if found.n == 0:
            if not first:
                continue  # the first table says why
            shown = " / ".join(dict.fromkeys(r.status for r in results[variant])) or "pending"
        row = [part.setting, variant.label, *([variant.paper] if with_paper else []), shown]
        comparison = ["", ""]
        if variant is not part.baseline:
            difference = paired(_values(results[part.baseline], metric), values, metric.better)
            comparison = _show_paired(difference, metric.digits, metric.ratio)
        rows.append([*row, str(found.n), *comparison])
    how = "; geometric means, spread as a factor" if metric.ratio else ""
    return f"{metric.label} ({metric.better} is better{how}):\n\n{markdown(rows)}"


def work_table(experiment: Experiment, results: Results) -> str:
    """Evaluations and time, in all and until the baseline's last validation metric is reached."""
    rows = [
        ["setting", "variant", "NFE forward", "backward", "s", "NFE of a test batch",
         "NFE to reach", "s to reach", "difference in s [95 %]", "verdict"]
    ]  # fmt: skip
    monitors: dict[str, None] = {}
    for part, variant in experiment.pairs:
        records = [r for r in finished(results[variant]) if r.checks]
        if not records:
            continue
        monitors |= {record.monitor: None for record in records if record.monitor}
        last = [record.checks[-1] for record in records]
        clock = records[0].clock
        found = reached(results[part.baseline], results[variant])
        there = {seed: check for seed, check in found.items() if check is not None}
        seconds = {seed: float(getattr(check, clock)) for seed, check in there.items()}
        late = len(found) - len(there)
        until = _mean(seconds.values(), 0) if seconds else ""
        if late:
            until = f"{until} not reached ({late} of {len(found)})".strip()
        comparison = ["", ""]
        if variant is not part.baseline and late:
            comparison[1] = "not reached by all: no verdict" if there else "not reached"
        elif variant is not part.baseline:
            own = reached(results[part.baseline], results[part.baseline])
            baseline = {seed: getattr(c, clock) for seed, c in own.items() if c is not None}
            comparison = _show_paired(paired(baseline, seconds, "lower"), 0)
        rows.append(
            [
                part.setting,
                variant.label,
                _count(check.nfe_forward for check in last),
                _count(check.nfe_backward for check in last),
                _mean((getattr(check, clock) for check in last), 0),
                _mean((record.values.get("test/nfe_forward", math.nan) for record in records), 1),
                _count(c.nfe_forward + c.nfe_backward for c in there.values()) if there else "",
                until,
                *comparison,
            ]
        )
    metric = " or ".join(f"`{name}`" for name in monitors)
    return (
        "Work in training, means over the seeds: evaluations of the vector field, summed over the "
        "batches; seconds in training batches (on CPU processor seconds), without validation. "
        f'"To reach": until the first check at which {metric or "the metric"} is as good as the '
        "baseline's at its last check, with the same seed.\n\n" + markdown(rows)
    )


def missing_runs(experiment: Experiment, results: Results) -> str:
    """Runs that failed or did not run, and why; empty if all is there."""
    lines: dict[str, list[str]] = {}
    for part, variant in experiment.pairs:
        for record in results[variant]:
            if record.status != "finished":
                why = " ".join(record.message.split()).replace("|", "/")
                why = why if len(why) <= 160 else f"{why[:157]}..."
                where = f"{part.setting}, {variant.label} (seed {record.seed})"
                lines.setdefault(f"{record.status}: {why}", []).append(where)
    return "\n".join(
        f"- {key} -- {where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''}"
        for key, where in lines.items()
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header.

    Example:
        >>> print(markdown([["a", "b"], ["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    header, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *body])


def _values(records: Sequence[Record], metric: Metric) -> dict[int, float]:
    """By seed, as shown; logarithms where ratios are compared."""
    found = {r.seed: r.value(metric.key) for r in finished(records)}
    shown = {seed: metric.factor * value for seed, value in found.items() if value is not None}
    if metric.ratio:
        shown = {seed: math.log(v) if v > 0 else math.nan for seed, v in shown.items()}
    return shown


def _exp(value: float, digits: int) -> str:
    return f"{math.exp(min(value, 700.0)):.{digits}g}"


def _show_summary(found: Summary, metric: Metric) -> str:
    middle, between, spread = (
        f"{found.mean:.{metric.digits}f}",
        "+-",
        f"{found.std:.{metric.digits}f}",
    )
    if metric.ratio:
        middle, between, spread = _exp(found.mean, 3), "*/", _exp(found.std, 2)
    return middle if found.n < 2 else f"{middle} {between} {spread}"


def _show_paired(found: Paired, digits: int, ratio: bool = False) -> list[str]:
    """Difference with its interval, and the verdict; both empty without pairs."""
    if found.n == 0:
        return ["", ""]
    middle, low, high = (f"{value:+.{digits}f}" for value in found[:3])
    if ratio:
        middle, low, high = _exp(found.mean, 3), _exp(found.low, 2), _exp(found.high, 2)
    return [middle if found.n < 2 else f"{middle} [{low}, {high}]", found.verdict]


def _mean(values: Iterable[float], digits: int) -> str:
    return f"{summary([*values]).mean:.{digits}f}"


def _count(values: Iterable[float]) -> str:
    """A mean count, rounded to three digits with thousands set apart."""
    mean = summary([*values]).mean
    if not math.isfinite(mean) or mean == 0:
        return f"{mean:.0f}"
    return f"{round(mean, 2 - math.floor(math.log10(abs(mean)))):,.0f}"


def _machine(machine: Mapping[str, object]) -> str:
    versions = machine.get("versions")
    named = versions.items() if isinstance(versions, Mapping) else ()
    commit = str(machine.get("commit") or "unknown")[:10]
    dirty = " with changes" if machine.get("dirty") else ""
    return (
        f"Made by commit {commit}{dirty} on {machine.get('gpu') or machine.get('cpu')}, "
        f"{machine.get('threads')} of {machine.get('cores')} threads; "
        f"Python {machine.get('python')}, {', '.join(f'{k} {v}' for k, v in named)}."
    )
