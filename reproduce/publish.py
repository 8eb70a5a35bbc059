"""What is published of finished runs: pages, pictures, records, and an index of what holds."""

import fcntl
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from reproduce.catalogue import EXPERIMENTS
from reproduce.experiments import Claim, Comparison, Experiment, Metric, Scale, Variant
from reproduce.records import (
    Record,
    Results,
    finished,
    overrides_of,
    read_lines,
    read_records,
    write_records,
)
from reproduce.report import WORK, changes, difference, markdown, show_difference, write_page
from reproduce.statistics import Paired

RECORDS = "records.jsonl"
# In the order of the index, and what the words mean there.
STATUS = {
    "holds": "every comparison agrees with the paper",
    "holds in part": "some comparisons agree, and others do not or show nothing",
    "does not hold": "no comparison agrees, and some show otherwise",
    "open": "nothing is shown, or has run",
}
_SHOWN = ("gain", "loss", "no difference")


def publish(folder: Path, experiment: Experiment, results: Results) -> None:
    """Write page, picture, records and index; of an experiment that has a finished run.

    The page starts with the command that makes it. Finished runs that the folder holds, as of
    another machine, stay beside those of the results. A picture that cannot be drawn, as
    callbacks' plots cannot be from records, is left as it is.

    Raises:
        ValueError: If runs that the folder holds have another scale, or, of this experiment, were
            given other overrides.
    """
    if not _has_run(results):
        return
    with _alone_in(folder):
        _check_scale(folder, experiment)
        known = read_records(folder / RECORDS, experiment)
        stay = {variant: _missing(known[variant], results[variant]) for variant in results}
        given, before = overrides_of(results), overrides_of(stay)
        if _has_run(stay) and given != before:
            raise ValueError(
                f"Expected runs of {experiment.name} with --override {before}, as some that "
                f"{folder} holds, but got runs with {given}. Publish them to another folder."
            )
        results = {v: _with(records, stay[v]) for v, records in results.items()}
        n_seeds = 1 + max(record.seed for records in results.values() for record in records)
        line = [experiment.name, "--scale", experiment.scale, "--seeds", str(n_seeds)]
        line += [f"--override={argument}" for argument in overrides_of(results)]
        page = write_page(experiment, results, shlex.join(["python", "-m", "reproduce", *line]))
        picture = f"![{experiment.title}]({experiment.name}.png)"
        (folder / f"{experiment.name}.md").write_text(f"{page}\n{picture}\n")
        write_records(folder / RECORDS, experiment, results)
        figure = experiment.draw(experiment, results)
        if any(axis.has_data() for axis in figure.axes):
            figure.savefig(folder / f"{experiment.name}.png", dpi=120)
        _write_index(folder, experiment.scale)


def _check_scale(folder: Path, experiment: Experiment) -> None:
    """Refuse to mix scales: an index has one, and an experiment one page."""
    together = {"paper", "full"} if experiment.scale in ("paper", "full") else {experiment.scale}
    for line in read_lines(folder / RECORDS):
        allowed = {experiment.scale} if line["experiment"] == experiment.name else together
        if line["scale"] not in allowed:
            raise ValueError(
                f"Expected runs at the scale of those that {folder} holds, {line['scale']} of "
                f"{line['experiment']}, but got {experiment.name} at {experiment.scale}. Publish "
                f"them to another folder."
            )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and let other commands that publish to it wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # a folder would be locked on this node alone
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Finding(NamedTuple):
    """A claim with its metric, what became of it, and each comparison."""

    experiment: Experiment
    claim: Claim
    metric: Metric
    status: str
    seen: list[tuple[Comparison, Variant, Paired]]
    changed: str  # what all runs were given beside what the experiment says


def judge(experiment: Experiment, claim: Claim, results: Results) -> Finding:
    """Whether a claim holds, by the verdicts of all comparisons of its metric."""
    metric = next(m for m in (*experiment.metrics, *WORK) if m.key == claim.metric)
    seen = [
        (part, variant, difference(metric, results[part.baseline], results[variant]))
        for part in experiment.comparisons
        if part.setting.startswith(claim.settings)
        for variant in part.others
    ]
    verdicts = [found.verdict for *_, found in seen]
    agree = sum(verdict in claim.expects for verdict in verdicts)
    if agree:
        status = "holds" if agree == len(verdicts) else "holds in part"
    else:
        status = "does not hold" if any(v in _SHOWN for v in verdicts) else "open"
    return Finding(experiment, claim, metric, status, seen, changes(results))


def _write_index(folder: Path, scale: Scale) -> None:
    """Write ``index.md``: what holds, what does not, what is open; then a picture a claim."""
    path = folder / RECORDS
    if not path.is_file():
        return
    # Where it is nothing else, `full` is the paper's: a folder may hold both.
    scales: Sequence[Scale] = ("paper", "full") if scale in ("paper", "full") else (scale,)
    experiments: dict[Experiment, Results] = {}
    for make in EXPERIMENTS.values():
        held = [(made, read_records(path, made)) for made in map(make, scales)]
        made, results = next((pair for pair in held if _has_run(pair[1])), held[-1])
        experiments[made] = results
    findings = [judge(e, claim, experiments[e]) for e in experiments for claim in e.claims]
    if not any(found.n for finding in findings for *_, found in finding.seen):
        return  # experiments beyond the paper alone: each page says what was found
    order = [*STATUS]
    findings.sort(key=lambda finding: order.index(finding.status))
    rows = [["claim", "so", "seen"]]
    rows += [
        [_link(f), f"**{f.status}**", " ".join([_counted(f), f.changed]).strip()] for f in findings
    ]
    words = "; ".join(f"*{status}*: {meaning}" for status, meaning in STATUS.items())
    others = [e for e, results in experiments.items() if not e.claims and _has_run(results)]
    parts = [
        "# What holds of the paper",
        f"By verdicts of paired 95 % intervals over seeds: {words}. Each page says what differs "
        "from the paper's setting, with seeds, commit and hardware.",
        markdown(rows),
        *(["Beyond the paper:"] if others else []),
        "\n".join(f"- [{e.title}]({e.name}.md)" for e in others),
        *(part for finding in findings if finding.status != "open" for part in _section(finding)),
    ]
    (folder / "index.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def _has_run(results: Results) -> bool:
    return any(finished(records) for records in results.values())


def _missing(known: Iterable[Record], records: Iterable[Record]) -> list[Record]:
    """Finished runs whose seed is not among those of the others that are finished."""
    seeds = {record.seed for record in finished(records)}
    return [record for record in finished(known) if record.seed not in seeds]


def _with(records: Iterable[Record], others: Iterable[Record]) -> list[Record]:
    """Records with others in the place of those of their seeds, by seed."""
    by_seed = {record.seed: record for record in (*records, *others)}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _link(finding: Finding) -> str:
    place = finding.experiment.title.partition(":")[0]
    if any(found.n for *_, found in finding.seen):
        place = f"[{place}]({finding.experiment.name}.md)"
    return f"{finding.claim.says} ({place})"


def _counted(finding: Finding) -> str:
    """How many comparisons gave each verdict."""
    counts = Counter(found.verdict if found.n else "not run" for *_, found in finding.seen)
    return ", ".join(f"{verdict}: {n}" for verdict, n in counts.most_common())


def _section(finding: Finding) -> Iterator[str]:
    """The claim, its picture, and what was seen in each comparison."""
    experiment, claim, metric, status, seen, changed = finding
    against = "ratio to baseline" if metric.ratio else "difference to baseline"
    yield f"## {claim.says[0].upper()}{claim.says[1:]}: {status}"
    yield f"![{experiment.title}]({experiment.name}.png)"
    rows = [["setting", "variant", f"{metric.label}: {against} [95 %]", "n", "verdict"]]
    for part, variant, found in seen:
        if found.n:
            shown, verdict = show_difference(found, metric)
            rows.append([part.setting, variant.label, shown, str(found.n), verdict])
    yield markdown(rows)
    link = f"All of it: [{experiment.title}]({experiment.name}.md)."
    yield " ".join(filter(None, [changed, experiment.cut, link]))
