"""The page of an experiment in Markdown, from its records."""

import math
from collections.abc import Iterable, Mapping, Sequence

from reproduce.experiments import Comparison, Experiment, Metric, Scale, Variant
from reproduce.records import Record, Results, finished
from reproduce.statistics import Paired, Summary, paired, reached, summary


def write_page(experiment: Experiment, results: Results, scale: Scale, command: str = "") -> str:
    """The whole page: caption, a table for each metric, work, and what did not run."""
    parts = [f"## {experiment.title}", caption(experiment, results, scale)]
    if command:
        parts.insert(1, f"    {command}")
    parts += [metric_table(experiment, metric, results) for metric in experiment.metrics]
    parts += [work_table(experiment, results)]
    parts += [missing] if (missing := missing_runs(experiment, results)) else []
    parts += [machines(results)]
    return "\n\n".join(parts) + "\n"


def caption(experiment: Experiment, results: Results, scale: Scale) -> str:
    """Scale, cuts, seeds and how to read the numbers."""
    seeds = sorted({record.seed for variant in experiment.variants for record in results[variant]})
    words = ", ".join(map(str, seeds))
    if scale == "paper":
        first = f"Reproduction at the paper's scale. {experiment.cut}"
    else:
        first = f"**Scale `{scale}`, not a reproduction.** {experiment.cut}"
    rest = (
        f"{'Seed' if len(seeds) == 1 else 'Seeds'} {words} (weights, noise and end times; the "
        "data and its split are the same). Mean +- sample standard deviation over the seeds. A "
        "difference is to the baseline of the same seed, with Student's paired 95 % interval; "
        'where that holds zero, the words are "no difference".'
    )
    if len(seeds) == 2:
        rest += " Two seeds can show only differences that are far larger than their spread."
    return "\n\n".join([f"{first} {rest}".replace("  ", " "), *experiment.notes])


def metric_table(experiment: Experiment, metric: Metric, results: Results) -> str:
    """One metric of every variant, beside the paper's if it is the first."""
    first = metric is experiment.metrics[0] and any(
        variant.paper for variant in experiment.variants
    )
    against = "ratio to baseline" if metric.ratio else "difference"
    header = ["setting", "variant", metric.label, "n", f"{against} [95 %]", "verdict"]
    rows = [[*header[:2], "paper", *header[2:]] if first else header]
    for part, variant in _variants(experiment):
        values = _values(results[variant], metric)
        found = summary([*values.values()])
        if found.n == 0 and metric is not experiment.metrics[0]:
            continue  # the first table says why
        row = [part.setting, variant.label, _show_summary(found, metric), str(found.n)]
        if found.n == 0:
            row[2] = _why(results[variant])
        if first:
            row.insert(2, variant.paper)
        if variant is part.baseline:
            row += ["", ""]
        else:
            difference = paired(_values(results[part.baseline], metric), values, metric.better)
            row += [_show_paired(difference, metric), difference.verdict if difference.n else ""]
        rows.append(row)
    better = "higher" if metric.better == "higher" else "lower"
    how = "; geometric means, spread as a factor" if metric.ratio else ""
    return f"{metric.label} ({better} is better{how}):\n\n{markdown(rows)}"


def work_table(experiment: Experiment, results: Results) -> str:
    """Evaluations and time, in all and until the baseline's last validation metric is reached."""
    rows = [
        ["setting", "variant", "NFE forward", "backward", "s", "NFE of a test batch",
         "NFE to reach", "s to reach", "difference in s [95 %]", "verdict"]
    ]  # fmt: skip
    monitors: dict[str, None] = {}
    for part, variant in _variants(experiment):
        records = [r for r in finished(results[variant]) if r.checks]
        if not records:
            continue
        monitors |= {record.monitor: None for record in records if record.monitor}
        last = [record.checks[-1] for record in records]
        clock = records[0].clock
        found = reached(results[part.baseline], results[variant])
        there = {seed: check for seed, check in found.items() if check is not None}
        own = reached(results[part.baseline], results[part.baseline])
        baseline = {seed: getattr(c, clock) for seed, c in own.items() if c is not None}
        seconds = {seed: float(getattr(check, clock)) for seed, check in there.items()}
        nfe = [check.nfe_forward + check.nfe_backward for check in there.values()]
        late = len(found) - len(there)
        row = [
            part.setting,
            variant.label,
            _count(check.nfe_forward for check in last),
            _count(check.nfe_backward for check in last),
            _plain((getattr(check, clock) for check in last), 0),
            _plain((record.values.get("test/nfe_forward", math.nan) for record in records), 1),
            _count(nfe) if nfe else "",
            _plain(seconds.values(), 0) if seconds else "",
        ]
        if late:
            row[-1] = f"{row[-1]} not reached ({late} of {len(found)})".strip()
        if variant is part.baseline:
            row += ["", ""]
        elif late:
            row += ["", "not reached" if not there else "not reached by all: no verdict"]
        else:
            difference = paired(baseline, seconds, "lower")
            row += [_interval(difference, 0), difference.verdict if difference.n else ""]
        rows.append(row)
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
    for part, variant in _variants(experiment):
        for record in results[variant]:
            if record.status != "finished":
                key = f"{record.status}: {_short(record.message)}"
                where = f"{part.setting}, {variant.label} (seed {record.seed})"
                lines.setdefault(key, []).append(where)
    return "\n".join(
        f"- {key} -- {where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''}"
        for key, where in lines.items()
    )


def machines(results: Results) -> str:
    """Versions, hardware and commits of the finished runs."""
    lines = [_machine(r.machine) for records in results.values() for r in finished(records)]
    return "\n".join(dict.fromkeys(lines)) or "Nothing has run."


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header.

    Example:
        >>> print(markdown([["a", "b"], ["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    header, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (header, *body)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _variants(experiment: Experiment) -> Iterable[tuple[Comparison, Variant]]:
    return ((part, variant) for part in experiment.comparisons for variant in part.variants)


def _values(records: Sequence[Record], metric: Metric) -> dict[int, float]:
    """By seed, as shown; logarithms where ratios are compared."""
    found = {r.seed: r.value(metric.key) for r in finished(records)}
    shown = {seed: metric.factor * value for seed, value in found.items() if value is not None}
    return {seed: _log(v) for seed, v in shown.items()} if metric.ratio else shown


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _show_summary(found: Summary, metric: Metric) -> str:
    if metric.ratio:
        text = f"{_exp(found.mean):.3g}"
        return text if found.n < 2 else f"{text} */ {_exp(found.std):.2g}"
    text = f"{found.mean:.{metric.digits}f}"
    return text if found.n < 2 else f"{text} +- {found.std:.{metric.digits}f}"


def _show_paired(found: Paired, metric: Metric) -> str:
    if found.n == 0:
        return ""
    if not metric.ratio:
        return _interval(found, metric.digits)
    text = f"{_exp(found.mean):.3g}"
    return text if found.n < 2 else f"{text} [{_exp(found.low):.2g}, {_exp(found.high):.2g}]"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _interval(found: Paired, digits: int) -> str:
    if found.n == 0:
        return ""
    text = f"{found.mean:+.{digits}f}"
    return text if found.n < 2 else f"{text} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _plain(values: Iterable[float], digits: int) -> str:
    return f"{summary([*values]).mean:.{digits}f}"


def _count(values: Iterable[float]) -> str:
    """A mean count, rounded to three digits with thousands set apart."""
    mean = summary([*values]).mean
    if not math.isfinite(mean) or mean == 0:
        return f"{mean:.0f}"
    return f"{round(mean, 2 - math.floor(math.log10(abs(mean)))):,.0f}"


def _why(records: Sequence[Record]) -> str:
    return " / ".join(dict.fromkeys(record.status for record in records)) or "pending"


def _short(message: str, most: int = 160) -> str:
    line = " ".join(message.split()).replace("|", "/")
    return line if len(line) <= most else line[: most - 3] + "..."


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
