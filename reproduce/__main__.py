"""``python -m reproduce table5 --scale short --seeds 3``: train, compare, write a table."""

import argparse
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import torch

from reproduce.catalogue import EXPERIMENTS, GROUPS
from reproduce.catalogue.regularizers import TASKS
from reproduce.experiments import SCALES, Experiment
from reproduce.pool import execute_all
from reproduce.publish import publish
from reproduce.records import Results, read_records, write_records
from reproduce.report import write_page
from reproduce.runs import ABSENT, Run, Settings, prepare, time_training
from steer_lightning.callbacks.plots.style import save_figure

LEFT = 75  # exit code where the time was up: "try again", as sysexits.h has it


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
    add("--task", nargs="+", choices=TASKS, help="tasks of `regularizers` (default: all)")
    add("--seeds", type=int, help="seeds 0 to N - 1; each experiment has a default")
    add("--jobs", type=int, help="runs at a time, each in a process of its own (default: 1; on "
        "Slurm as many as it lets); 0: one after the other in this process")  # fmt: skip
    add("--minutes", type=float, help="stop after so many, on Slurm each job; the same command "
        f"goes on. Exit code {LEFT} if runs are left")  # fmt: skip
    add("--launcher", choices=("local", "slurm"), default="local",
        help="run here, or as a job array of Slurm, one job a run (default: local)")  # fmt: skip
    add("--slurm", action="append", default=[], metavar="NAME=VALUE", help="resources of a job, "
        "as submitit's SlurmExecutor names them: partition, time (in minutes), mem, "
        "cpus_per_task, gpus_per_node, account, qos, ... ")  # fmt: skip
    add("--output", type=Path, default=Path("results"),
        help="folder of results (default: results)")  # fmt: skip
    add("--data_dir", type=Path, default=Path(os.environ.get("STEER_DATA_DIR", "data")),
        help="folder that holds mnist, physionet2012, person_activity, cifar10, svhn, imagenet32 "
        "(default: $STEER_DATA_DIR, or data)")  # fmt: skip
    add("--override", action="append", default=[], metavar="ARGUMENT", help="an argument of "
        "cli.py for every run, such as --override=--trainer.accelerator=gpu")  # fmt: skip
    add("--estimate", action="store_true", help="time a few steps of each baseline, and say how "
        "long all runs would take a core")  # fmt: skip
    add("--tables_only", action="store_true", help="train nothing; write what is there")
    add("--publish", type=Path, metavar="DIR", help="write what is finished as pages, pictures "
        "and one file of records to this folder, with an index of what holds")  # fmt: skip
    add("--records", type=Path, metavar="FILE", help="train nothing; write tables and figures of "
        "the runs in this file, such as docs/results/short/records.jsonl")  # fmt: skip
    found = parser.parse_args(arguments)
    if not found.names and not found.list:
        parser.error("name an experiment, or `all`, or ask for --list")
    if found.records and not found.records.is_file():
        parser.error(f"expected the file of --records, but there is no {found.records}")
    on_slurm = found.launcher == "slurm"
    for name, least in (("seeds", 1), ("jobs", 1 if on_slurm else 0)):
        value = getattr(found, name)
        if value is not None and value < least:
            parser.error(f"expected --{name} of at least {least}, but got {value}")
    if found.minutes is not None and not found.minutes > 0.0:
        parser.error(f"expected --minutes above 0, but got {found.minutes:g}")
    if wrong := [given for given in found.slurm if not given.partition("=")[2]]:
        parser.error(f"expected --slurm NAME=VALUE, but got {wrong[0]!r}")
    times = [given for given in found.slurm if given.startswith("time=")]
    if wrong := [given for given in times if not given[5:].isdigit()]:
        parser.error(f"expected --slurm time=MINUTES, a whole number, but got {wrong[0]!r}")
    if found.slurm and not on_slurm:
        parser.error("expected --launcher slurm beside --slurm")
    if on_slurm and find_spec("submitit") is None:
        parser.error("expected submitit for --launcher slurm: pip install -e '.[tasks,cluster]'")
    known = {**GROUPS, **{name: (name,) for name in sorted(EXPERIMENTS)}}
    for word in found.names:
        if word not in known:
            parser.error(
                f"Expected the name of an experiment, but got {word!r}. Use {', '.join(known)}."
            )
    found.names = list(dict.fromkeys(name for word in found.names for name in known[word]))
    if found.task:
        left_out = {*GROUPS["regularizers"]} - {f"regularizers_{task}" for task in found.task}
        if not left_out <= {*found.names}:
            parser.error(f"expected --task beside `regularizers`, but got {found.names}")
        found.names = [name for name in found.names if name not in left_out]
    return found


class Command:
    """The experiments asked for, their runs, and what is left to do."""

    def __init__(self, found: argparse.Namespace, line: str) -> None:
        self.settings = Settings(found.scale, found.output, found.data_dir, tuple(found.override))
        self.found = found
        self.started = time.monotonic()
        self.line = line
        self.experiments = [EXPERIMENTS[name](found.scale) for name in found.names]
        self.seeds = {e.name: range(found.seeds or e.seeds) for e in self.experiments}
        self.unpublished = ""  # why something was not
        self._absent: dict[str, str] = {}

    def train(self) -> int:
        """Execute what is not finished; write each experiment when its last run ends.

        Returns:
            How many runs are left because the time was up.
        """
        left = {experiment: self._unfinished(experiment) for experiment in self.experiments}
        pending = {folder: run for runs in left.values() for folder, run in runs.items()}
        numbers = count(1)
        for experiment, runs in left.items():
            if not runs:
                self.write(experiment)

        def done(run: Run) -> None:
            record = run.record()
            print(
                f"[{next(numbers)}/{len(pending)}, "
                f"{(time.monotonic() - self.started) / 60:.1f} min] "
                f"{run.variant.config}, {run.variant.label}, seed {run.seed}: "
                f"{record.status} {record.message[:200]}",
                flush=True,
            )
            if record.status == "pending":
                return
            for experiment, runs in left.items():
                if runs.pop(run.folder, None) and not runs:
                    self.write(experiment)

        self._execute(list(pending.values()), done)
        for experiment, runs in left.items():
            if runs:
                self.write(experiment)
        return len({folder for runs in left.values() for folder in runs})

    def _unfinished(self, experiment: Experiment) -> dict[Path, Run]:
        """Runs to train, seed by seed, so that a command that is stopped leaves whole pairs."""
        return {
            run.folder: run
            for seed in self.seeds[experiment.name]
            for variant in experiment.variants
            if (run := Run(variant, seed, self.settings)).record().status != "finished"
            and self._has_data(run)
        }

    def estimate(self) -> None:
        """Print the minutes of a core that each experiment takes, from steps of its baselines."""
        torch.set_num_threads(1)
        seconds: dict[Path, float] = {}
        print(f"{'experiment':<32}{'scale':<8}{'runs':>6}{'core minutes':>14}{'a run':>8}")
        for experiment in self.experiments:
            total, absent, n_runs = 0.0, 0, 0
            for part in experiment.comparisons:
                run = Run(part.baseline, 0, self.settings)
                if run.folder not in seconds:
                    step, n_steps = time_training(run) if self._has_data(run) else (math.nan, 0)
                    seconds[run.folder] = step * n_steps
                n = len(self.seeds[experiment.name]) * len(part.variants)
                if math.isnan(seconds[run.folder]):
                    absent += n
                else:
                    total += n * seconds[run.folder] / 60.0
                    n_runs += n
            words = f"{total:14,.0f}{total / n_runs:8.1f}" if n_runs else f"{'':22}"
            without = f"  and {absent} without data" if absent else ""
            name = f"{experiment.name:<32}{experiment.scale:<8}"
            print(f"{name}{n_runs:>6}{words}{without}", flush=True)

    def _execute(self, runs: Sequence[Run], done: Callable[[Run], None]) -> None:
        minutes, jobs = self.found.minutes, self.found.jobs
        if self.found.launcher == "slurm":
            from reproduce.slurm import execute_on_slurm  # late: it needs an extra

            resources = dict(given.split("=", 1) for given in self.found.slurm)
            numbers = {k: int(v) if v.isdigit() else v for k, v in resources.items()}
            folder = self.settings.output / "slurm"
            execute_on_slurm(runs, jobs, done, folder, numbers, minutes)
        else:
            deadline = None if minutes is None else self.started + 60.0 * minutes
            execute_all(runs, 1 if jobs is None else jobs, done, deadline)

    def write(self, experiment: Experiment, results: Results | None = None) -> None:
        """Write table, figure and records; of the runs' folders if no results are given."""
        if results is None:
            results = {
                variant: [
                    replace(
                        record,
                        message=self._without_folders(record.message),
                        overrides=[self._without_folders(given) for given in record.overrides],
                    )
                    for seed in self.seeds[experiment.name]
                    for record in [Run(variant, seed, self.settings).record()]
                ]
                for variant in experiment.variants
            }
        folder = self.settings.output / experiment.name / experiment.scale
        folder.mkdir(parents=True, exist_ok=True)
        line = self._without_folders(self.line)
        page = write_page(experiment, results, line)
        (folder / "table.md").write_text(f"{page}\n![{experiment.title}](figure.png)\n")
        write_records(folder / "records.jsonl", experiment, results)
        save_figure(experiment.draw(experiment, results), folder / "figure.png")
        print(f"{experiment.name}: {folder / 'table.md'}", flush=True)
        if self.found.publish:
            try:
                publish(self.found.publish, experiment, results)
            except ValueError as error:
                self.unpublished = f"error: {error}"
                print(self.unpublished, flush=True)

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
                print(f"{run.variant.config} and others cannot run: {error}", flush=True)
            except SystemExit:
                if self.settings.overrides:  # the parser has said what is wrong, of every run
                    raise
            except Exception:
                pass  # the run itself will say what is wrong
        if message := self._absent[key]:
            run.fail(message, absent=True)
        return not message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, or the arguments given; the exit code."""
    found = parse(arguments)
    if found.list:
        for name, make in EXPERIMENTS.items():
            experiment = make(found.scale)
            n = len(experiment.variants)
            print(f"{name:<32}{experiment.title} ({n} variants, {experiment.seeds} seeds)")
        print("\n".join(f"{name:<32}{' '.join(members)}" for name, members in GROUPS.items()))
        return 0
    given = sys.argv[1:] if arguments is None else arguments
    command = Command(found, shlex.join(["python", "-m", "reproduce", *given]))
    if found.estimate:
        command.estimate()
        return 0
    if not (found.records or found.tables_only):
        if n_left := command.train():
            print(f"The time is up: {n_left} runs are left. The same command goes on.")
        return LEFT if n_left else int(bool(command.unpublished))
    saved: dict[Experiment, Results | None] = dict.fromkeys(command.experiments)
    if found.records:
        read = {e: read_records(found.records, e) for e in command.experiments}
        if not (saved := {e: results for e, results in read.items() if any(results.values())}):
            sys.exit(
                f"{found.records} has no run of {', '.join(found.names)} at scale {found.scale}"
            )
    for experiment, results in saved.items():
        command.write(experiment, results)
    return int(bool(command.unpublished))


if __name__ == "__main__":
    # So that a command that is told to end ends its runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except (SystemExit, KeyboardInterrupt) as error:
        # Lightning leaves by the former where the latter stopped a run of this process.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print(
            "Stopped. The same command goes on from the last check of each run; jobs of Slurm "
            "go on by themselves, unless `scancel --name=reproduce --me` ends them."
        )
        sys.exit(130)
