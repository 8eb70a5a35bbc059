"""Records of runs, and a compact file of them: one line a run."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reproduce.experiments import Experiment, Metric, Variant
from steer_lightning.callbacks.training_clock import Check
from steer_lightning.utils.io import replacing

MOST_CHECKS = 500  # the most that an experiment has: one an epoch, or every twentieth step
_CLOCKED = Check._fields[:-1]  # all but the metrics


@dataclass
class Record:
    """The outcome of one run."""

    seed: int
    status: Literal["finished", "failed", "not run", "pending"]
    message: str = ""  # why there is no result
    values: Mapping[str, float] = field(default_factory=dict)  # of test and last check
    sweep: Mapping[str, Sequence[float]] = field(default_factory=dict)  # columns of `EndTimeSweep`
    checks: Sequence[Check] = ()  # the history of training
    monitor: str = ""  # what its checkpoints are chosen by
    mode: str = "min"
    machine: Mapping[str, Any] = field(default_factory=dict)  # of the last session
    overrides: Sequence[str] = ()  # `--override`, given to all runs of its command
    folder: Path = Path()

    @property
    def timed_on(self) -> tuple[Any, ...]:
        """Processor, threads and commit: runs of other days took other seconds for the same."""
        hardware = self.machine.get("gpu") or self.machine.get("cpu")
        return hardware, self.machine.get("threads"), self.machine.get("commit")

    @property
    def clock(self) -> Literal["seconds", "cpu_seconds"]:
        """Wall-clock time on a GPU; on CPU, which other work may share, processor time."""
        return "seconds" if self.machine.get("gpu") else "cpu_seconds"

    def value(self, key: str) -> float | None:
        """A metric by name.

        ``sweep/NAME@T`` is that of the evaluation at end time ``T``; with ``@min`` or ``@max`` the
        smallest or largest over all end times, NaN if one has none. ``train/seconds`` and
        ``train/nfe`` (forward and backward) are those of the whole training.
        """
        if key in ("train/seconds", "train/nfe"):
            if not self.checks:
                return None
            last = self.checks[-1]
            nfe = last.nfe_forward + last.nfe_backward
            return nfe if key == "train/nfe" else float(getattr(last, self.clock))
        name, _, end_time = key.removeprefix("sweep/").partition("@")
        if end_time in ("min", "max"):
            return float(getattr(np, end_time)(self.sweep.get(name, math.nan)))
        if not end_time:
            return self.values.get(key)
        times = [f"{t:g}" for t in self.sweep.get("end_time", ())]
        return dict(zip(times, self.sweep.get(name, ()), strict=True)).get(end_time)


Results = Mapping[Variant, Sequence[Record]]
Pair = tuple[Any, ...]  # seed, and what times were taken on: what two compared runs share


def finished(records: Iterable[Record]) -> list[Record]:
    """Those with a result."""
    return [record for record in records if record.status == "finished"]


def overrides_of(results: Results) -> list[str]:
    """What finished runs were given beside what their experiment says."""
    runs = [record for records in results.values() for record in finished(records)]
    return [*dict.fromkeys(argument for record in runs for argument in record.overrides)]


def by_seed(records: Iterable[Record], metric: Metric) -> dict[Pair, float]:
    """A metric of the finished runs, as shown; time is compared where it was taken alike."""
    timed = metric.key == "train/seconds"
    return {
        (record.seed, *(record.timed_on if timed else ())): metric.factor * value
        for record in finished(records)
        if (value := record.value(metric.key)) is not None
    }


def write_records(path: Path, experiment: Experiment, results: Results) -> None:
    """Write a line for each run, with rounded numbers and at most 500 checks of the monitor.

    Lines of other variants, experiments and scales are kept.
    """
    key = {"experiment": experiment.name, "scale": experiment.scale}
    written = {(part.setting, variant.label) for part, variant in experiment.pairs}
    lines = [
        line
        for line in read_lines(path)
        if not key.items() <= line.items() or (line["setting"], line["variant"]) not in written
    ]
    for part, variant in experiment.pairs:
        for record in results[variant]:
            line = {
                **key,
                "setting": part.setting,
                "variant": variant.label,
                **_compact(record, {metric.key for metric in experiment.metrics}),
                "machine": record.machine,
            }
            lines.append(line)
    for line, before in reversed([*zip(lines[1:], lines, strict=False)]):
        if line["machine"] == before["machine"]:
            del line["machine"]
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines)
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one without a machine has that of the line before."""
    machine: Mapping[str, Any] = {}
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        lines.append({"machine": machine, **json.loads(text)})
        machine = lines[-1]["machine"]
    return lines


def read_records(path: Path, experiment: Experiment) -> Results:
    """Records of an experiment at its scale; a variant that is not in the file has none."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for saved in read_lines(path):
        key = tuple(saved.pop(name) for name in ("experiment", "scale", "setting", "variant"))
        columns = saved.pop("checks")
        monitored = columns.pop("monitor", [])
        metrics = [{} if math.isnan(v) else {saved["monitor"]: v} for v in monitored]
        rows = zip(*columns.values(), metrics, strict=True) if columns else ()
        found.setdefault(key, []).append(Record(**saved, checks=[Check(*row) for row in rows]))
    return {
        variant: found.get((experiment.name, experiment.scale, part.setting, variant.label), [])
        for part, variant in experiment.pairs
    }


def _compact(record: Record, keys: Set[str]) -> dict[str, Any]:
    def rounded(values: Iterable[float]) -> list[float]:
        return [
            v if isinstance(v, int) or not math.isfinite(v) else float(f"{v:.8g}") for v in values
        ]

    checks = record.checks
    n = min(MOST_CHECKS, len(checks))
    kept = [checks[round((i + 1) * len(checks) / n) - 1] for i in range(n)]
    columns = {name: rounded(getattr(c, name) for c in kept) for name in _CLOCKED}
    columns["monitor"] = rounded(c.metrics.get(record.monitor, math.nan) for c in kept)
    # Not of each block, whose names have a second slash, unless it is shown.
    values = {k: v for k, v in record.values.items() if k.count("/") < 2 or k in keys}
    return {
        "seed": record.seed,
        "status": record.status,
        "message": record.message,
        "values": dict(zip(values, rounded(values.values()), strict=True)),
        "sweep": {name: rounded(column) for name, column in record.sweep.items()},
        "checks": columns if kept else {},
        "monitor": record.monitor,
        "mode": record.mode,
        **({"overrides": [*record.overrides]} if record.overrides else {}),
    }
