"""The page of an experiment in Markdown, from its records."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from reproduce.experiments import Comparison, Experiment, Metric, Variant
from reproduce.records import Pair, Record, Results, by_seed, finished, overrides_of
from reproduce.statistics import HELD, Paired, Summary, paired, reached, summary


def write_page(experiment: Experiment, results: Results, command: str = "") -> str:
    """The whole page: caption, a table for each metric and for the work, what did not run."""
    machines = [
        _machine(record.machine) for records in results.values() for record in finished(records)
    ]
    tables = [experiment.tables(experiment, results)] if experiment.tables else [
        *(metric_table(experiment, metric, results) for metric in experiment.metrics),
        work_tables(experiment, results),
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
        "paper": "Reproduction at the paper's scale."
        if experiment.claims
        else "In full length; **not in the paper.**",
        "full": "In full length, but **not the paper's setting.**",
    }.get(experiment.scale, f"**Scale `{experiment.scale}`, not a reproduction.**")
    first = changes(results) or first
    means, words_of_verdicts = "Means", ""
    if not experiment.tables:
        means = "Mean +- sample standard deviation"
        words_of_verdicts = (
            " *Gain*, *loss*: the interval excludes zero. *No difference larger than X*: it "
            "excludes all that are, and X would not matter. *Not shown (needs X)*: it tells "
            "neither, and with these seeds a mean difference below X could not have shown."
        )
    text = (
        f"{first} {experiment.cut} "
        f"{'Seed' if len(seeds) == 1 else 'Seeds'} {words} (weights, noise, end times and the "
        f"order of batches; the data and its split are the same). {means} over the seeds. A "
        "difference is to the baseline of the same seed, with Student's paired 95 % interval."
        f"{words_of_verdicts}"
    ).replace("  ", " ")
    return "\n\n".join([text, *experiment.notes])


def changes(results: Results) -> str:
    """What all runs were given beside what the experiment says; empty if nothing."""
    given = " ".join(f"`{argument}`" for argument in overrides_of(results))
    return given and f"**Not as the experiment stands: with {given}.**"


def metric_table(experiment: Experiment, metric: Metric, results: Results) -> str:
    """One metric of every variant, beside the paper's if it is the first."""
    return _table(experiment, metric, results, lambda _, v: metric_values(results[v], metric))


# What training costs; a twentieth would not matter.
_cost = partial(Metric, better="lower", ratio=True, matters=1.05)
WORK = (
    _cost("train/nfe", "evaluations in training"),
    _cost("train/seconds", "seconds of training"),
)
_TEST_NFE = _cost("test/nfe_forward", "evaluations in a test batch")
_TO_REACH = _cost("", "seconds to reach")


def work_tables(experiment: Experiment, results: Results) -> str:
    """Evaluations and time, in all and until the baseline's level is held."""
    records = [r for rs in results.values() for r in finished(rs) if r.checks]
    if not records:
        return ""

    def to_reach(part: Comparison, variant: Variant) -> dict[Pair, float]:
        ran = {record.seed: record for record in results[variant]}
        found = reached(results[part.baseline], results[variant])
        return {
            (seed, *ran[seed].timed_on): math.log(getattr(at, ran[seed].clock)) if at else math.inf
            for seed, at in found.items()
        }

    shown = {metric.key for metric in experiment.metrics}
    passes = {f"{r.values['test/batches']:.0f}" for r in records if "test/batches" in r.values}
    over = f" over {' or '.join(sorted(passes))} of them" if passes else ""
    text = (
        "Work. Evaluations of the vector field in training are forward and backward, summed over "
        "the batches; seconds are those in training batches (on a CPU processor seconds), without "
        "validation, and compared at one commit and processor alone; evaluations in test batches "
        f"are means{over}."
    )
    costs = [metric for metric in (*WORK, _TEST_NFE) if metric.key not in shown]
    tables = [metric_table(experiment, metric, results) for metric in costs]
    monitors = " or ".join(f"`{name}`" for name in dict.fromkeys(r.monitor for r in records))
    if monitors.strip("`"):
        text += (
            f" *To reach*: until the first check from which on {monitors} stays, for {HELD} "
            "checks, as good as the best level that the baseline of the same seed held as long, "
            "less the noise of its checks (their median change from one to the next in the second "
            "half of training)."
        )
        tables.append(_table(experiment, _TO_REACH, results, to_reach))
    return "\n\n".join([text, *tables])


def _table(
    experiment: Experiment,
    metric: Metric,
    results: Results,
    values: Callable[[Comparison, Variant], dict[Pair, float]],
) -> str:
    """A row for each variant; an infinite logarithm is what was not reached."""
    first = metric is experiment.metrics[0]
    with_paper = first and any(variant.paper for variant in experiment.variants)
    against = "ratio to baseline" if metric.ratio else "difference"
    paper = ["paper"] * with_paper
    rows = [["setting", "variant", *paper, metric.label, "n", f"{against} [95 %]", "verdict"]]
    for part, variant in experiment.pairs:
        own = values(part, variant)
        found = summary([*own.values()])
        shown = _show_summary(found, metric)
        if late := sum(math.isinf(v) for v in own.values()) if metric is _TO_REACH else 0:
            shown = f"not reached ({late} of {found.n})"
        if found.n == 0:
            if not first:
                continue  # the first table says why
            shown = " / ".join(dict.fromkeys(r.status for r in results[variant])) or "pending"
        row = [part.setting, variant.label, *[variant.paper] * with_paper, shown]
        comparison = ["", ""]
        if late:
            comparison[1] = "not reached" if late == found.n else "not reached by all: no verdict"
        elif variant is not part.baseline:
            comparison = show_difference(compare(metric, values(part, part.baseline), own), metric)
        rows.append([*row, n_seeds(own, values(part, part.baseline)), *comparison])
    how = "; geometric means, spread as a factor" if metric.ratio else ""
    if metric.matters:
        how += f"; {_size(_threshold(metric), metric)} would matter"
    return f"{metric.label} ({metric.better} is better{how}):\n\n{markdown(rows)}"


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


def n_seeds(own: Mapping[Pair, float], baseline: Mapping[Pair, float]) -> str:
    """How many seeds a row has, and how many of them are compared where those are fewer."""
    n_pairs = len(own.keys() & baseline.keys())
    return f"{len(own)}" if n_pairs == len(own) else f"{len(own)} ({n_pairs} compared)"


def metric_values(records: Sequence[Record], metric: Metric) -> dict[Pair, float]:
    """As shown; logarithms where ratios are compared."""
    shown = by_seed(records, metric)
    if metric.ratio:
        shown = {pair: math.log(v) if v > 0 else math.nan for pair, v in shown.items()}
    return shown


def compare(metric: Metric, baseline: Mapping[Pair, float], other: Mapping[Pair, float]) -> Paired:
    """Pairs of such values, and what they say."""
    return paired(baseline, other, metric.better, _threshold(metric))


def difference(metric: Metric, baseline: Sequence[Record], other: Sequence[Record]) -> Paired:
    """The same of records."""
    return compare(metric, metric_values(baseline, metric), metric_values(other, metric))


def _threshold(metric: Metric) -> float:
    return math.log(metric.matters) if metric.ratio and metric.matters else metric.matters


def _size(value: float, metric: Metric) -> str:
    """The size of a difference, in two digits."""
    return f"a factor of {_exp(value, 3)}" if metric.ratio else f"{float(f'{value:.2g}'):g}"


def _exp(value: float, digits: int) -> str:
    number = float(f"{math.inf if value >= 700.0 else math.exp(value):.{digits}g}")
    return f"{number:,.0f}" if 1e3 <= number < 1e6 else f"{number:g}"


def _show_summary(found: Summary, metric: Metric) -> str:
    if metric.ratio:
        middle, spread = _exp(found.mean, 3), f"*/ {_exp(found.std, 2)}"
    else:
        middle, spread = (f"{v:.{metric.digits}f}" for v in (found.mean, found.std))
        spread = f"+- {spread}"
    return middle if found.n < 2 else f"{middle} {spread}"


def show_difference(found: Paired, metric: Metric) -> list[str]:
    """Difference with its interval, and the verdict; both empty without pairs."""
    if found.n == 0:
        return ["", ""]
    middle, low, high = (f"{value:+.{metric.digits}f}" for value in found[:3])
    if metric.ratio:
        middle, low, high = (_exp(value, 3) for value in found[:3])
    return [middle if found.n < 2 else f"{middle} [{low}, {high}]", _show_verdict(found, metric)]


def _show_verdict(found: Paired, metric: Metric) -> str:
    """A verdict, with what the interval excludes or could have shown."""
    if found.verdict == "no difference":
        return f"no difference larger than {_size(found.excludes, metric)}"
    if found.verdict == "not shown":
        return f"not shown (needs {_size(found.shows, metric)})"
    return found.verdict


def _machine(machine: Mapping[str, object]) -> str:
    versions = machine.get("versions")
    named = versions.items() if isinstance(versions, Mapping) else ()
    commits = str(machine.get("commit") or "unknown").split()
    commit = " then ".join(commit[:10] for commit in commits)
    dirty = " with changes" if machine.get("dirty") else ""
    return (
        f"Made by commit {commit}{dirty} on {machine.get('gpu') or machine.get('cpu')}, "
        f"{machine.get('threads')} of {machine.get('cores')} threads; "
        f"Python {machine.get('python')}, {', '.join(f'{k} {v}' for k, v in named)}."
        f"{machine.get('note', '')}"
    )
