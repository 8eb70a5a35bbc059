"""``python -m reproduce table5 --scale short --seeds 3``: train, compare, write a table."""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reproduce.experiments import SCALES, Experiment
from reproduce.records import Record, Results, read_records, write_records
from reproduce.registry import EXPERIMENTS, GROUPS, names_of
from reproduce.report import write_page
from reproduce.runs import ABSENT, Run, Settings, prepare
from reproduce.workers import execute_all


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce",
        description="Train baseline and STEER with the same seeds, compare them, and write table "
        "and figure to results/NAME/SCALE. Finished runs are kept and stopped ones go on.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; --list names them")
    parser.add_argument("--list", action="store_true", help="print all names and what they are")
    parser.add_argument("--scale", choices=SCALES, default="short",
                        help="how much is cut; only `paper` is a reproduction (default: "
                        "short)")  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, help="seeds 0 to N - 1; each experiment has a default"
    )
    parser.add_argument("--jobs", type=int, default=1,
                        help="runs at a time, each in a process of its own (default: 1); 0: one "
                        "after the other in this process")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("results"),
                        help="folder of results (default: results)")  # fmt: skip
    parser.add_argument("--data_dir", type=Path, help="folder that holds mnist, physionet2012, "
                        "person_activity, cifar10, svhn, imagenet32 (default: $STEER_DATA_DIR, "
                        "or data)",
                        default=Path(os.environ.get("STEER_DATA_DIR", "data")))  # fmt: skip
    parser.add_argument("--override", action="append", default=[], metavar="ARGUMENT",
                        help="an argument of cli.py for every run, such as "
                        "--override=--trainer.accelerator=gpu")  # fmt: skip
    parser.add_argument("--tables_only", action="store_true",
                        help="train nothing; write what is there")  # fmt: skip
    parser.add_argument("--records", type=Path, metavar="FILE",
                        help="train nothing; write tables and figures of the runs in this file, "
                        "such as docs/results/short/records.jsonl")  # fmt: skip
    found = parser.parse_args(arguments)
    if not found.names and not found.list:
        parser.error("name an experiment, or `all`, or ask for --list")
    if found.seeds is not None and found.seeds < 1:
        parser.error(f"expected --seeds of at least 1, but got {found.seeds}")
    if found.jobs < 0:
        parser.error(f"expected --jobs of at least 0, but got {found.jobs}")
    try:
        found.names = names_of(found.names)
    except ValueError as error:
        parser.error(str(error))
    return found


class Command:
    """The experiments asked for, their runs, and what is left to do."""

    def __init__(self, found: argparse.Namespace, line: str) -> None:
        self.settings = Settings(found.scale, found.output, found.data_dir, tuple(found.override))
        self.jobs: int = found.jobs
        self.line = line
        self.experiments = [EXPERIMENTS[name](found.scale) for name in found.names]
        self.seeds = {e.name: range(found.seeds or e.seeds) for e in self.experiments}
        self._started = time.monotonic()
        self._absent: dict[str, str] = {}

    def runs(self, experiment: Experiment) -> list[Run]:
        """Seed by seed, so that a command that is stopped leaves whole pairs."""
        return [
            Run(variant, seed, self.settings)
            for seed in self.seeds[experiment.name]
            for variant in experiment.variants
        ]

    def train(self) -> None:
        """Execute what is not finished; write each experiment when its last run ends."""
        pending: dict[Path, Run] = {}
        outstanding: dict[str, set[Path]] = {}
        for experiment in self.experiments:
            left = [
                run
                for run in self.runs(experiment)
                if run.record().status != "finished" and self._has_data(run)
            ]
            outstanding[experiment.name] = {run.folder for run in left}
            pending |= {run.folder: run for run in left}
        for experiment in self.experiments:
            if not outstanding[experiment.name]:
                self.write(experiment)
        total = len(pending)

        def done(run: Run) -> None:
            pending.pop(run.folder)
            record = run.record()
            minutes = (time.monotonic() - self._started) / 60
            print(
                f"[{total - len(pending)}/{total}, {minutes:.1f} min] {run.variant.config}, "
                f"{run.variant.label}, seed {run.seed}: {record.status} {record.message[:200]}",
                flush=True,
            )
            for experiment in self.experiments:
                folders = outstanding[experiment.name]
                if run.folder in folders:
                    folders.discard(run.folder)
                    if not folders:
                        self.write(experiment)

        execute_all(list(pending.values()), self.jobs, done)

    def write(self, experiment: Experiment, results: Results | None = None) -> None:
        """Write table, figure and records; of the runs' folders if no results are given."""
        if results is None:
            results = {
                variant: [
                    self._shown(Run(variant, s, self.settings).record())
                    for s in self.seeds[experiment.name]
                ]
                for variant in experiment.variants
            }
        folder = self.settings.output / experiment.name / self.settings.scale
        folder.mkdir(parents=True, exist_ok=True)
        line = self._without_folders(self.line)
        page = write_page(experiment, results, self.settings.scale, line)
        (folder / "table.md").write_text(f"{page}\n![{experiment.title}](figure.png)\n")
        write_records(folder / "records.jsonl", {experiment: results})
        experiment.draw(experiment, results).savefig(folder / "figure.png", dpi=120)
        print(f"{experiment.name}: {folder / 'table.md'}", flush=True)

    def _shown(self, record: Record) -> Record:
        return replace(record, message=self._without_folders(record.message))

    def _without_folders(self, text: str) -> str:
        """Text without this machine's absolute folders, to be shown to others."""
        for folder, name in (
            (self.settings.data_dir, "DATA"),
            (self.settings.output.resolve(), "results"),
        ):
            if folder.is_absolute():
                text = text.replace(str(folder), name)
        return text

    def _has_data(self, run: Run) -> bool:
        """Let data be checked, once for all runs that read it; a run without it says why."""
        key = run.data_key
        if key not in self._absent:
            try:
                prepare(run)
                self._absent[key] = ""
            except ABSENT as error:
                self._absent[key] = str(error)
            except (Exception, SystemExit):
                self._absent[key] = ""  # the run itself will say what is wrong
        if message := self._absent[key]:
            run.fail(message, absent=True)
        return not message


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or the arguments given."""
    found = parse(arguments)
    if found.list:
        for name, make in EXPERIMENTS.items():
            experiment = make(found.scale)
            n = len(experiment.variants)
            print(f"{name:<20}{experiment.title} ({n} variants, {experiment.seeds} seeds)")
        print("\n".join(f"{name:<20}{' '.join(members)}" for name, members in GROUPS.items()))
        return
    given = sys.argv[1:] if arguments is None else arguments
    command = Command(found, shlex.join(["python", "-m", "reproduce", *given]))
    if found.records or found.tables_only:
        for experiment in command.experiments:
            command.write(
                experiment, read_records(found.records, experiment) if found.records else None
            )
    else:
        command.train()


if __name__ == "__main__":
    # So that a command that is told to end ends its runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last epoch of each run.")
        sys.exit(130)
