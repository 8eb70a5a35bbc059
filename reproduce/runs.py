"""Runs: a config, its overrides and a seed, trained and tested through the command line."""

import csv
import fcntl
import hashlib
import json
import math
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from reproduce.arguments import TRAINER, options
from reproduce.experiments import Scale, Variant
from reproduce.machine import describe_machine
from reproduce.records import Record
from steer_lightning.callbacks import TrainingClock
from steer_lightning.callbacks.plots.base import EvaluationPlot
from steer_lightning.callbacks.training_clock import Check
from steer_lightning.utils.io import replacing

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# What a datamodule says when its data is not there.
ABSENT = (FileNotFoundError, ModuleNotFoundError)


@dataclass(frozen=True)
class Settings:
    """Settings that all runs of a command share."""

    scale: Scale
    output: Path
    data_dir: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A variant with one seed.

    Its folder depends on all that is trained, and not on the experiment, so that two experiments
    share a run, and a config that was changed has runs of its own. It keeps the config that it
    found at first, also where it is executed by another process later on.
    """

    variant: Variant
    seed: int
    settings: Settings

    @cached_property
    def _text(self) -> str:
        return (CONFIGS / f"{self.variant.config}.yaml").read_text()

    @property
    def _config(self) -> dict[str, Any]:
        return yaml.safe_load(self._text)

    @cached_property
    def folder(self) -> Path:
        """Where its files go."""
        variant, settings = self.variant, self.settings
        key = json.dumps([self._config, variant.overrides, settings.overrides, variant.weights])
        name = f"{variant.config.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        # What `full` does not cut are the paper's own runs; the key tells the others apart.
        scale = "paper" if settings.scale == "full" else settings.scale
        return (settings.output / "runs" / scale / name / f"seed{self.seed}").resolve()

    @property
    def data_key(self) -> str:
        """Equal for runs that read the same data."""
        changes = [a for a in self.arguments() if a.startswith("--data")]
        return json.dumps([self._config["data"], changes])

    def arguments(self) -> list[str]:
        """Config, overrides and seed, with the data in this machine's folders."""
        data, settings = self._config["data"], self.settings
        arguments = ["--config", str(CONFIGS / f"{self.variant.config}.yaml")]
        if "data_dir" in data.get("init_args", {}):
            name = Path(data["init_args"]["data_dir"]).name
            arguments.append(f"--data.init_args.data_dir={settings.data_dir / name}")
        if name := _class_at(data["class_path"]).cache_name:
            given = settings.data_dir / "cache" / name
            cache = given if given.is_dir() else settings.output / "cache" / name
            arguments.append(f"--data.init_args.cache_dir={cache}")
        return [
            *arguments,
            "--trainer.devices=1",
            *self.variant.overrides,
            *settings.overrides,
            f"--seed_everything={self.seed}",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
        ]

    def fit_arguments(self) -> list[str]:
        """All arguments of ``cli.py fit``; the checkpoint to go on from is the one left behind.

        The config is copied; its callbacks are written to a file, with its clock behind all others
        and plots in test alone.
        """
        callbacks = []
        for callback in self._config["trainer"]["callbacks"]:
            found = _class_at(callback["class_path"])
            if isinstance(found, type) and issubclass(found, EvaluationPlot):
                callback.setdefault("init_args", {})["every_n_checks"] = 10**9
            if found is not TrainingClock:
                callbacks.append(callback)
        config_file, callbacks_file = self.folder / "config.yaml", self.folder / "callbacks.yaml"
        config_file.write_text(self._text)
        callbacks_file.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        checkpoints = self.folder / "checkpoints"
        last = checkpoints / "last.ckpt"
        _, _, *rest = self.arguments()
        return [
            *("--config", str(config_file)),
            *("--config", str(callbacks_file)),
            *rest,
            f"--trainer.logger.init_args.save_dir={self.folder}",
            "--trainer.logger.init_args.name=",
            "--trainer.logger.init_args.version=logs",
            "--trainer.callbacks+=steer_lightning.callbacks.TrainingClock",
            f"--checkpoint.dirpath={checkpoints}",
            "--checkpoint.filename=best",
            "--checkpoint.enable_version_counter=false",
            *([f"--ckpt_path={last}"] if last.is_file() else []),
        ]

    def record(self) -> Record:
        """Read the outcome of this run."""
        folder = self.folder
        if (folder / "run.json").is_file():
            saved = json.loads((folder / "run.json").read_text())
            sessions = saved["sessions"]

            def joined(name: str, by: str = " then ") -> Any:
                seen = [*dict.fromkeys(s[name] for s in sessions if s.get(name))]
                return by.join(map(str, seen)) if len(seen) > 1 else next(iter(seen), None)

            return Record(
                self.seed,
                "finished",
                **{name: saved[name] for name in ("values", "sweep", "monitor", "mode")},
                checks=[Check(**check) for check in saved["checks"]],
                machine={
                    **sessions[-1],
                    **{name: joined(name) for name in ("cpu", "gpu", "threads")},
                    "commit": joined("commit", " "),
                    "dirty": any(session.get("dirty") for session in sessions),
                },
                overrides=self.settings.overrides,
                folder=folder,
            )
        saved = {"status": "pending", "message": "not trained yet"}
        if (folder / "failure.json").is_file():
            saved = json.loads((folder / "failure.json").read_text())
        return Record(self.seed, **saved, folder=folder)

    def fail(self, message: str, absent: bool = False) -> None:
        """Say why there is no result; the next command tries again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        status = "not run" if absent else "failed"
        _write_json(self.folder / "failure.json", {"status": status, "message": message})


def prepare(run: Run) -> None:
    """Let a run's data be checked, downloaded or simulated, once before runs side by side.

    Raises:
        FileNotFoundError: If a file of data is missing.
        ModuleNotFoundError: If what simulates data is missing.
    """
    # Here there may be no GPU, as where jobs are submitted.
    here = options(TRAINER, accelerator="cpu", devices=1, strategy="auto", logger="false")
    _cli([*run.arguments(), *here], run=False).datamodule.prepare_data()


def execute(run: Run, seconds: float | None = None) -> None:
    """Train and test, and write ``run.json`` or, if something fails, ``failure.json``.

    A stopped run goes on from its last check, or where Ctrl-C stopped it. After ``seconds`` it is
    stopped as by Ctrl-C, and is left pending, unless its test has begun; only in a main thread.
    Another command that executes the same run, as experiments share some, is waited for as long.
    """
    is_up, waits = False, True

    def stop(*_: object) -> None:
        nonlocal is_up
        is_up = True
        # In the background of a shell SIGINT does nothing, until training handles it.
        if waits or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    if seconds is not None:
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a kill frees it
            waits = False
            if run.record().status != "finished":
                (run.folder / "failure.json").unlink(missing_ok=True)
                _execute(run)
    except Exception as error:
        traceback.print_exc()
        run.fail(f"{type(error).__name__}: {error}", isinstance(error, ABSENT))
    except (KeyboardInterrupt, SystemExit) as error:
        if getattr(error, "code", None) == 2:  # the parser refuses
            run.fail("cli.py refuses the arguments; see output.log")
        elif not is_up:
            raise
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


def time_training(run: Run, n_steps: int = 5) -> tuple[float, int]:
    """Processor seconds of a training step, of the first few, and how many the run takes.

    Validation and test are not in it, and a field that is trained may take more evaluations.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    prepared = _cli([*run.arguments(), "--trainer.logger=false"], run=False)
    trainer, data = prepared.trainer, prepared.datamodule
    data.prepare_data()
    data.setup("fit")
    per_epoch, limit = len(data.train_dataloader()), trainer.limit_train_batches
    per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
    total = per_epoch * trainer.max_epochs
    total = total if trainer.max_steps == -1 else min(total, trainer.max_steps)
    # Neither logs nor checkpoints, and as many batches of validation.
    quick = (f"--trainer.fast_dev_run={n_steps}", f"--trainer.default_root_dir={run.folder}")
    anew = [a for a in run.fit_arguments() if not a.startswith("--ckpt_path=")]
    fit = _cli(["fit", *anew, *quick])
    (clock,) = (c for c in fit.trainer.callbacks if isinstance(c, TrainingClock))
    return clock.totals["cpu_seconds"] / fit.trainer.global_step, total


def _execute(run: Run) -> None:
    sessions_file = run.folder / "sessions.json"
    arguments = run.fit_arguments()
    goes_on = arguments[-1].startswith("--ckpt_path=") and sessions_file.is_file()
    sessions = json.loads(sessions_file.read_text()) if goes_on else []
    sessions.append(describe_machine())
    _write_json(sessions_file, sessions)
    with warnings.catch_warnings():
        # Of a run that was moved: it would forget its best checkpoint until then.
        warnings.filterwarnings("error", "The dirpath has changed")
        fit = _cli(["fit", *arguments])
    # A test begins anew each time: where it took longer than is left, no command would end it.
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    (clock,) = (c for c in fit.trainer.callbacks if isinstance(c, TrainingClock))
    (best,) = (c for c in fit.trainer.callbacks if isinstance(c, ModelCheckpoint))
    path = best.best_model_path if run.variant.weights == "best" else None
    if path == "":
        raise RuntimeError(f"Expected a checkpoint with the best {best.monitor}, but got none.")
    (tested,) = fit.trainer.test(fit.model, fit.datamodule, ckpt_path=path, verbose=False)
    checks = clock.checks
    values = {**(checks[-1].metrics if checks else {}), **tested}
    values["test/batches"] = sum(fit.trainer.num_test_batches)
    if fit.trainer.strategy.root_device.type != "cuda":
        for session in sessions:
            session["gpu"] = None  # there may be one, and it was not used
    sweep: dict[str, list[float]] = {}  # columns of the table of `EndTimeSweep`
    for table in (run.folder / "logs" / "plots").glob("end_time_sweep_*.csv"):
        rows = list(csv.DictReader(table.read_text().splitlines()))
        sweep = {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]}
    _write_json(
        run.folder / "run.json",
        {
            "variant": asdict(run.variant),
            "seed": run.seed,
            "scale": run.settings.scale,
            "arguments": arguments,
            "values": {name: float(value) for name, value in values.items()},
            "sweep": sweep,
            "checks": [check._asdict() for check in checks],
            "monitor": best.monitor,
            "mode": best.mode,
            "sessions": sessions,
        },
    )


def _cli(arguments: Sequence[str], run: bool = True) -> Any:
    # Late: it is slow to import, and reading results needs none of it.
    from cli import main

    given, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns of others beside those it is given
    try:
        return main(list(arguments), run=run)
    finally:
        sys.argv = given


def _class_at(path: str) -> Any:
    """The object at a ``class_path``; ``None`` for a bare name."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name) if module else None


def _write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity are written as Python does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
