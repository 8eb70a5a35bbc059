"""One run: a config, its overrides and a seed, trained and tested through the command line."""

import csv
import hashlib
import json
import math
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from reproduce.experiments import DATA, TRAINER, Scale, Variant
from reproduce.machine import describe_machine
from reproduce.records import Record
from steer_lightning.callbacks import TrainingClock
from steer_lightning.callbacks.plots.evaluation import EvaluationPlot
from steer_lightning.callbacks.training_clock import Check
from steer_lightning.utils.io import replacing

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# What a datamodule says when its data is not there.
ABSENT = (FileNotFoundError, ModuleNotFoundError)
_NEVER = 10**9


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
    share a run, and a config that was changed has runs of its own.
    """

    variant: Variant
    seed: int
    settings: Settings

    @property
    def folder(self) -> Path:
        """Where its files go."""
        variant = self.variant
        key = json.dumps(
            [self._config, variant.overrides, self.settings.overrides, variant.weights]
        )
        name = f"{variant.config.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        folder = self.settings.output / "runs" / self.settings.scale / name / f"seed{self.seed}"
        return folder.resolve()

    @property
    def _path(self) -> Path:
        return CONFIGS / f"{self.variant.config}.yaml"

    @property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self._path.read_text())
        return config

    @property
    def data_key(self) -> str:
        """Equal for runs that read the same data."""
        data = self._config["data"]
        return json.dumps([data, [a for a in self.arguments() if a.startswith("--data")]])

    def arguments(self) -> list[str]:
        """Config, overrides and seed, with the data in this machine's folders."""
        data = self._config["data"]
        arguments = ["--config", str(self._path)]
        if "data_dir" in data.get("init_args", {}):
            name = Path(data["init_args"]["data_dir"]).name
            arguments.append(f"{DATA}.data_dir={self.settings.data_dir / name}")
        if name := _class_at(data["class_path"]).cache_name:
            given = self.settings.data_dir / "cache" / name
            cache = given if given.is_dir() else self.settings.output / "cache" / name
            arguments.append(f"{DATA}.cache_dir={cache}")
        return [
            *arguments,
            *self.variant.overrides,
            *self.settings.overrides,
            f"--seed_everything={self.seed}",
            f"{TRAINER}.enable_progress_bar=false",
            f"{TRAINER}.enable_model_summary=false",
        ]

    def fit_arguments(self) -> list[str]:
        """All arguments of ``cli.py fit``; the checkpoint to go on from is the one left behind."""
        checkpoints = self.folder / "checkpoints"
        last = checkpoints / "last.ckpt"
        _, config, *rest = self.arguments()
        return [
            *("--config", config),
            *("--config", str(self.write_callbacks())),
            *rest,
            f"{TRAINER}.logger.init_args.save_dir={self.folder}",
            f"{TRAINER}.logger.init_args.name=",
            f"{TRAINER}.logger.init_args.version=logs",
            f"{TRAINER}.callbacks+=steer_lightning.callbacks.TrainingClock",
            f"--checkpoint.dirpath={checkpoints}",
            "--checkpoint.filename=best",
            "--checkpoint.enable_version_counter=false",
            *([f"--ckpt_path={last}"] if last.is_file() else []),
        ]

    def write_callbacks(self) -> Path:
        """Write the config's callbacks, without its clock and with plots in test alone."""
        callbacks = []
        for callback in self._config["trainer"]["callbacks"]:
            found = _class_at(callback["class_path"])
            if found is TrainingClock:
                continue  # there will be one behind all others
            if isinstance(found, type) and issubclass(found, EvaluationPlot):
                callback.setdefault("init_args", {})["every_n_checks"] = _NEVER
            callbacks.append(callback)
        path = self.folder / "callbacks.yaml"
        path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        return path

    def record(self) -> Record:
        """Read the outcome of this run."""
        folder = self.folder
        if (folder / "run.json").is_file():
            saved = json.loads((folder / "run.json").read_text())
            kept = {name: saved[name] for name in ("values", "sweep", "monitor", "mode")}
            checks = [Check(**check) for check in saved["checks"]]
            machine = saved["sessions"][-1]
            return Record(
                self.seed, "finished", **kept, checks=checks, machine=machine, folder=folder
            )
        if (folder / "failure.json").is_file():
            saved = json.loads((folder / "failure.json").read_text())
            return Record(self.seed, saved["status"], saved["message"], folder=folder)
        return Record(self.seed, "pending", "not trained yet", folder=folder)

    def fail(self, message: str, absent: bool = False) -> None:
        """Say why there is no result; the next command tries again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        status = "not run" if absent else "failed"
        write_json(self.folder / "failure.json", {"status": status, "message": message})


def prepare(run: Run) -> None:
    """Build what a run needs and let the data be checked, downloaded or simulated, once.

    Several runs at a time would otherwise make the same cache.

    Raises:
        FileNotFoundError: If a file of data is missing.
        ModuleNotFoundError: If what simulates data is missing.
    """
    built = _cli([*run.arguments(), f"{TRAINER}.logger=false"], run=False)
    built.datamodule.prepare_data()


def execute(run: Run) -> None:
    """Train and test, and write ``run.json`` or, if something fails, ``failure.json``.

    A stopped run goes on from its last check, or where Ctrl-C stopped it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "failure.json").unlink(missing_ok=True)
    try:
        _execute(run)
    except Exception as error:
        traceback.print_exc()
        run.fail(f"{type(error).__name__}: {error}", isinstance(error, ABSENT))
    except SystemExit as error:
        if error.code != 2:  # 2: the parser refuses; 1: Lightning was interrupted
            raise
        run.fail("cli.py refuses the arguments; see output.log")


def _execute(run: Run) -> None:
    sessions_file = run.folder / "sessions.json"
    sessions = json.loads(sessions_file.read_text()) if sessions_file.is_file() else []
    sessions.append(describe_machine())
    write_json(sessions_file, sessions)
    arguments = run.fit_arguments()
    fit = _cli(["fit", *arguments])
    trainer = fit.trainer
    (clock,) = (c for c in trainer.callbacks if isinstance(c, TrainingClock))
    checks = clock.checks  # now: a test restores the callbacks of the checkpoint it loads
    (best,) = (c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))
    path = best.best_model_path if run.variant.weights == "best" else None
    (tested,) = trainer.test(fit.model, fit.datamodule, ckpt_path=path or None, verbose=False)
    values = {**(checks[-1].metrics if checks else {}), **tested}
    write_json(
        run.folder / "run.json",
        {
            "variant": asdict(run.variant),
            "seed": run.seed,
            "scale": run.settings.scale,
            "arguments": arguments,
            "values": {name: float(value) for name, value in values.items()},
            "sweep": _read_sweep(run.folder / "logs" / "plots"),
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


def _read_sweep(folder: Path) -> dict[str, list[float]]:
    """Columns of the table of ``EndTimeSweep``, if there is one."""
    for path in sorted(folder.glob("end_time_sweep_*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]}
    return {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity are written as Python does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
