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

from reproduce.catalogue import GROUPS
from reproduce.experiments import EXPERIMENTS, SCALES, Experiment
from reproduce.records import Results, read_records, write_records
from reproduce.report import write_page
from reproduce.runs import ABSENT, Run, Settings, execute_all, prepare
from steer_lightning.callbacks.plots.style import save_figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; groups of names are spelled out, each name once."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce",
        description="Train baseline and STEER with the same seeds, compare them, and write table "
        "and figure to results/NAME/SCALE. Finished runs are kept and stopped ones go on.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="experiments; --list names them")
    add("--list", action="store_true", help="print all names and what they are")
    add("--scale", choices=SCALES, default="short",
        help="how much is cut; only `paper` is a reproduction (default: short)")  # fmt: skip
    add("--seeds", type=int, help="seeds 0 to N - 1; each experiment has a default")
    add("--jobs", type=int, default=1, help="runs at a time, each in a process of its own "
        "(default: 1); 0: one after the other in this process")  # fmt: skip
    add("--output", type=Path, default=Path("results"),
        help="folder of results (default: results)")  # fmt: skip
    add("--data_dir", type=Path, default=Path(os.environ.get("STEER_DATA_DIR", "data")),
        help="folder that holds mnist, physionet2012, person_activity, cifar10, svhn, imagenet32 "
        "(default: $STEER_DATA_DIR, or data)")  # fmt: skip
    add("--override", action="append", default=[], metavar="ARGUMENT", help="an argument of "
        "cli.py for every run, such as --override=--trainer.accelerator=gpu")  # fmt: skip
    add("--tables_only", action="store_true", help="train nothing; write what is there")
    add("--records", type=Path, metavar="FILE", help="train nothing; write tables and figures of "
        "the runs in this file, such as docs/results/short/records.jsonl")  # fmt: skip
    found = parser.parse_args(arguments)
    if not found.names and not found.list:
        parser.error("name an experiment, or `all`, or ask for --list")
    for name, least in (("seeds", 1), ("jobs", 0)):
        value = getattr(found, name)
        if value is not None and value < least:
            parser.error(f"expected --{name} of at least {least}, but got {value}")
    known = {**GROUPS, **{name: (name,) for name in sorted(EXPERIMENTS)}}
    for word in found.names:
        if word not in known:
            parser.error(
                f"Expected the name of an experiment, but got {word!r}. Use {', '.join(known)}."
            )
    found.names = list(dict.fromkeys(name for word in found.names for name in known[word]))
    return found


class Command:
    """The experiments asked for, their runs, and what is left to do."""

    def __init__(self, found: argparse.Namespace, line: str) -> None:
        self.settings = Settings(found.scale, found.output, found.data_dir, tuple(found.override))
        self.jobs: int = found.jobs
        self.line = line
        self.experiments = [EXPERIMENTS[name](found.scale) for name in found.names]
        self.seeds = {e.name: range(found.seeds or e.seeds) for e in self.experiments}
        self._absent: dict[str, str] = {}

    def train(self) -> None:
        """Execute what is not finished; write each experiment when its last run ends."""
        # Seed by seed, so that a command that is stopped leaves whole pairs.
        left = {
            experiment.name: {
                run.folder: run
                for seed in self.seeds[experiment.name]
                for variant in experiment.variants
                if (run := Run(variant, seed, self.settings)).record().status != "finished"
                and self._has_data(run)
            }
            for experiment in self.experiments
        }
        pending = {folder: run for runs in left.values() for folder, run in runs.items()}
        started, total, n_done = time.monotonic(), len(pending), 0
        for experiment in self.experiments:
            if not left[experiment.name]:
                self.write(experiment)

        def done(run: Run) -> None:
            nonlocal n_done
            n_done += 1
            record = run.record()
            print(
                f"[{n_done}/{total}, {(time.monotonic() - started) / 60:.1f} min] "
                f"{run.variant.config}, {run.variant.label}, seed {run.seed}: "
                f"{record.status} {record.message[:200]}",
                flush=True,
            )
            for experiment in self.experiments:
                runs = left[experiment.name]
                if runs.pop(run.folder, None) and not runs:
                    self.write(experiment)

        execute_all(list(pending.values()), self.jobs, done)

    def write(self, experiment: Experiment, results: Results | None = None) -> None:
        """Write table, figure and records; of the runs' folders if no results are given."""
        if results is None:
            results = {
                variant: [
                    replace(record, message=self._without_folders(record.message))
                    for seed in self.seeds[experiment.name]
                    for record in [Run(variant, seed, self.settings).record()]
                ]
                for variant in experiment.variants
            }
        folder = self.settings.output / experiment.name / self.settings.scale
        folder.mkdir(parents=True, exist_ok=True)
        line = self._without_folders(self.line)
        page = write_page(experiment, results, self.settings.scale, line)
        (folder / "table.md").write_text(f"{page}\n![{experiment.title}](figure.png)\n")
        write_records(folder / "records.jsonl", experiment, results)
        save_figure(experiment.draw(experiment, results), folder / "figure.png")
        print(f"{experiment.name}: {folder / 'table.md'}", flush=True)

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
            self._absent[key] = ""
            try:
                prepare(run)
            except ABSENT as error:
                self._absent[key] = str(error)
            except (Exception, SystemExit):
                pass  # the run itself will say what is wrong
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
    if not (found.records or found.tables_only):
        command.train()
        return
    for experiment in command.experiments:
        saved = read_records(found.records, experiment) if found.records else None
        command.write(experiment, saved)


if __name__ == "__main__":
    # So that a command that is told to end ends its runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last epoch of each run.")
        sys.exit(130)
