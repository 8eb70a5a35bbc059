"""``python -m reproduce table5 --scale short --seeds 3``: train, compare, write a table."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reproduce.experiments import SCALES, Experiment, Results
from reproduce.registry import EXPERIMENTS, GROUPS, names_of
from reproduce.runs import ABSENT, Run, Settings, prepare, write_json
from reproduce.tables import write_table
from reproduce.workers import execute_all


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce",
        description="Train baseline and STEER with the same seeds, compare them, and write table "
        "and plot to results/NAME/SCALE. Finished runs are kept and stopped ones go on.",
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
    """The experiments asked for, their runs, and what is left to do.

    Args:
        found: The parsed command line.
        line: The command line as it was given.
    """

    def __init__(self, found: argparse.Namespace, line: str) -> None:
        self.settings = Settings(
            found.scale, found.output, found.data_dir, tuple(found.override)
        )  # fmt: skip
        self.jobs: int = found.jobs
        self.line = line
        self.experiments = [EXPERIMENTS[name](found.scale) for name in found.names]
        self.seeds = {e.name: range(found.seeds or e.seeds) for e in self.experiments}
        self._started = time.monotonic()
        self._absent: dict[str, str] = {}

    def runs(self, experiment: Experiment) -> list[Run]:
        """Seed by seed, so that a command that is stopped leaves whole pairs."""
        return [
            Run(arm, seed, self.settings)
            for seed in self.seeds[experiment.name]
            for arm in experiment.arms
        ]

    def train(self) -> None:
        """Execute what is not finished; write each experiment when its last run ends."""
        outstanding = {e.name: {run.folder for run in self.runs(e)} for e in self.experiments}
        pending: dict[Path, Run] = {}
        for experiment in self.experiments:
            for run in self.runs(experiment):
                if run.record().status == "finished" or not self._has_data(run):
                    for folders in outstanding.values():
                        folders.discard(run.folder)
                else:
                    pending.setdefault(run.folder, run)
        for experiment in self.experiments:
            if not outstanding[experiment.name]:
                self.write(experiment)
        total = len(pending)

        def done(run: Run) -> None:
            pending.pop(run.folder)
            record = run.record()
            minutes = (time.monotonic() - self._started) / 60
            print(
                f"[{total - len(pending)}/{total}, {minutes:.1f} min] {run.arm.config}, "
                f"{run.arm.label}, seed {run.seed}: {record.status} {record.message[:200]}",
                flush=True,
            )
            for experiment in self.experiments:
                folders = outstanding[experiment.name]
                if run.folder in folders:
                    folders.discard(run.folder)
                    if not folders:
                        self.write(experiment)

        execute_all(list(pending.values()), self.jobs, done)

    def write(self, experiment: Experiment) -> Path:
        """Write table, plot and raw numbers of what is finished; returns their folder."""
        results: Results = {
            arm: [Run(arm, s, self.settings).record() for s in self.seeds[experiment.name]]
            for arm in experiment.arms
        }
        folder = self.settings.output / experiment.name / self.settings.scale
        folder.mkdir(parents=True, exist_ok=True)
        table = write_table(experiment, results, self.settings.scale, self.line)
        table = self._without_folders(f"{table}\n![{experiment.title}](figure.png)\n")
        (folder / "table.md").write_text(table)
        raw = self._without_folders(json.dumps(_raw(experiment, results)))
        write_json(folder / "records.json", json.loads(raw))
        experiment.draw(experiment, results).savefig(folder / "figure.png", dpi=120)
        print(f"{experiment.name}: {folder / 'table.md'}", flush=True)
        return folder

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


def _raw(experiment: Experiment, results: Results) -> list[dict[str, object]]:
    """What tables are made of, without the whole history, which each run's folder holds."""
    return [
        {
            "setting": part.setting,
            "baseline": arm is part.baseline,
            "arm": asdict(arm),
            "seed": record.seed,
            "status": record.status,
            "message": record.message,
            "values": dict(record.values),
            "last_check": record.checks[-1]._asdict() if record.checks else None,
            "machine": dict(record.machine),
            "folder": str(record.folder),
        }
        for part in experiment.comparisons
        for arm in part.arms
        for record in results[arm]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or the arguments given."""
    found = parse(arguments)
    if found.list:
        for name, make in EXPERIMENTS.items():
            experiment = make(found.scale)
            n = len(experiment.arms)
            print(f"{name:<20}{experiment.title} ({n} arms, {experiment.seeds} seeds)")
        print("\n".join(f"{name:<20}{' '.join(members)}" for name, members in GROUPS.items()))
        return
    given = sys.argv[1:] if arguments is None else arguments
    command = Command(found, shlex.join(["python", "-m", "reproduce", *given]))
    if found.tables_only:
        for experiment in command.experiments:
            command.write(experiment)
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
