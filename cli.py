"""Train, validate, test, predict: ``python cli.py fit --config configs/cnf/toy2d.yaml``.

``--steer.b=0.5`` trains with STEER, ``--penalties.acceleration=0.1`` with a penalty on the
trajectory; their arguments are options.
"""

import difflib
import inspect
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import torch
from jsonargparse.typing import register_type
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter, ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

# Imported so that short class names resolve on the command line.
import datamodules
import steer_lightning.callbacks.plots.end_time_sweep
import steer_lightning.callbacks.plots.features
import steer_lightning.callbacks.plots.flow
import steer_lightning.callbacks.plots.samples
import steer_lightning.callbacks.plots.series
import steer_lightning.callbacks.plots.stiff
import steer_lightning.modules
from steer_lightning.callbacks import (
    HyperparameterLog,
    LastCheckpoint,
    PenaltyCallback,
    PredictionWriter,
    SolverProgressBar,
    SteerCallback,
    TrainingClock,
)
from steer_lightning.callbacks.folders import run_folder
from steer_lightning.guard import SolverGuard
from steer_lightning.modules.base import TaskModule
from steer_lightning.penalties import (
    Acceleration,
    JacobianNorm,
    KineticEnergy,
    LocalError,
    Penalty,
    Stiffness,
    TrajectoryPolynomial,
)
from steer_lightning.solvers import SolverError

register_type(torch.device)  # so that `config.yaml` holds one as text, as Lightning's callbacks do
DEBUG = os.environ.get("STEER_DEBUG") == "1"
# Lines of jsonargparse's messages that say nothing about what is wrong.
IDLE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type"
    r"|Given value: (\W|Name|Nested)|Not a valid sub|Subclass types|a (class|dict) "
    r"|Expected a path but"
)
MISSPELT = re.compile(
    r"(?:[Oo]ption|no attribute|invalid choice:) '([\w.]+)'|unrecognized arguments: --([\w.]+)"
    r"|(?:import path string|Got value): ([\w.]+)"
)
# What is left of a message about a value that is of no use at all.
BARE = re.compile(r'(Parser key "[\w.]+":)( Given value: .*)?')
# Who refuses a wrong argument in words: this project and the parser; others by a ValueError.
OURS = "steer_lightning.", "datamodules.", "jsonargparse."
THEIRS = "pytorch_lightning.", "lightning_fabric.", "torch.optim."
# A penalty's weight, and STEER's b, in short, in arguments with NUL between them.
WEIGHT = re.compile(r"(?<![^\0])(--penalties\.\w+)(?=[=\0][-+\d.])")
B = re.compile(r"(?<![^\0])--steer(?=[=\0](\d|auto))")


@dataclass
class Penalties:
    """Penalties on trajectories, by name; see docs/penalties.md."""

    kinetic_energy: KineticEnergy | float | None = None
    jacobian_norm: JacobianNorm | float | None = None
    acceleration: Acceleration | float | None = None
    local_error: LocalError | float | None = None
    stiffness: Stiffness | float | None = None
    trajectory_polynomial: TrajectoryPolynomial | float | None = None

    def chosen(self) -> list[Penalty]:
        """Those that were asked for; a number alone is a weight."""
        given = ((getattr(self, f.name), f.type.__args__[0]) for f in fields(self))
        return [x if isinstance(x, Penalty) else cls(x) for x, cls in given if x is not None]


class OneLineParser(LightningArgumentParser):
    """Refuses in one line, with near names; with ``STEER_DEBUG=1`` by a traceback."""

    def parse_args(self, args: Any = None, **settings: Any) -> Any:
        """Parse, with penalties' weights and STEER's b in short."""
        given = sys.argv[1:] if args is None else args
        text = B.sub("--steer.b", WEIGHT.sub(r"\1.weight", "\0".join(given)))
        return super().parse_args(text.split("\0") if given else given, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if DEBUG or not self.exit_on_error:  # jsonargparse tries a class's arguments by the latter
            self.exit_on_error = False
            super().error(message, ex)
        said = one_line(message)
        if bare := BARE.fullmatch(said):
            said = f"{bare[1]} expected settings by name, which --help lists{bare[2] or ''}"
        near = near_names(said, getattr(ex, "subcommand_parser", None) or self)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"error: {said}{hint}\n")


def one_line(message: str) -> str:
    """A message without the lines that say nothing."""
    lines = (line.strip(" -") for line in message.splitlines())
    return " ".join(line for line in lines if line and not IDLE.match(line))


def near_names(message: str, parser: LightningArgumentParser) -> list[str]:
    """Names that are like the one a message of the parser complains of."""
    if (found := MISSPELT.search(message)) is None:
        return []
    word = next(filter(None, found.groups()))
    known = {action.dest for action in parser._actions if not action.dest.endswith("help")}
    known |= {name.partition(".")[0] for name in known}
    for module_path, name in re.findall(r"class_path '([\w.]+)\.(\w+)'", message)[-1:]:
        module = import_module(module_path)
        cls = getattr(module, name, None)
        known = set(inspect.signature(cls).parameters if cls else vars(module))
    if "import path string" in message:
        known = {*vars(datamodules), *vars(steer_lightning.modules), *vars(torch.optim)}
    known |= set(re.findall(r"'(\w+)'", message)) - {word}  # choices
    matches = (difflib.get_close_matches(w, known, 2) for w in (word, word.partition(".")[0]))
    return next(filter(None, matches), [])


class SteerCLI(LightningCLI):
    """LightningCLI with model and data chosen by class, and the defaults of this project."""

    def __init__(self, *positional: Any, args: ArgsType = None, **named: Any) -> None:
        given = sys.argv[1:] if args is None else args
        known = self.subcommands()
        # Only the parser of the command that is given: each takes a fifth of a second to build.
        asked = {name: skip for name, skip in known.items() if [name] == list(given)[:1]}
        self.subcommands = lambda: asked or known
        super().__init__(*positional, args=args, parser_class=OneLineParser, **named)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--tf32",
            type=bool | None,
            default=None,
            help="Let matrix products and convolutions of GPUs round to TF32; torch's own choice "
            "(convolutions only) if not given.",
        )
        parser.add_argument(
            "--steer",
            type=SteerCallback | None,
            default=None,
            help="STEER: --steer.b=0.5, or --steer.b=auto for series; off if not given.",
        )
        parser.add_argument(
            "--penalties",
            type=Penalties | None,
            default=None,
            help="Penalties on trajectories: --penalties.acceleration=0.1, or its settings one by "
            "one; off if not given.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(SolverGuard, "guard")
        parser.set_defaults({"checkpoint.filename": "{epoch}-{step}"})

    def _parse_ckpt_path(self) -> None:
        """Let config and command line hold; Lightning lets a checkpoint overrule them."""

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None
    ) -> Any:
        """``--optimizer`` replaces the optimiser alone: a task keeps its schedule."""
        if lr_scheduler is None and isinstance(lightning_module, TaskModule):
            return lightning_module.with_schedule(optimizer)
        return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)

    def before_instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.tf32 is not None:
            precision = "tf32" if config.tf32 else "ieee"
            torch.backends.cuda.matmul.fp32_precision = precision
            torch.backends.cudnn.conv.fp32_precision = precision
        if config.steer is not None:
            b = config.steer.init_args.b
            follow_steer(config.trainer, max(b.start, b.end) if hasattr(b, "start") else b)
        checkpoint = config.get("ckpt_path")
        evaluates = self.subcommand in ("validate", "test", "predict")
        if evaluates and not checkpoint:
            rank_zero_warn("Without --ckpt_path the model has the weights that it starts with.")
        # Lightning has words for some, which it looks up; `last` among its ModelCheckpoint's own.
        looked_up = checkpoint == "hpc" or (checkpoint == "last" and config.checkpoint.save_last)
        if checkpoint and not (looked_up or "://" in checkpoint or Path(checkpoint).exists()):
            self.parser.error(
                f"Expected --ckpt_path to be the file of a checkpoint, such as "
                f"logs/cnf/toy2d/version_0/checkpoints/last.ckpt, but there is no {checkpoint!r}"
            )
        if evaluates:  # what trained is not needed any more
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        if self.subcommand != "fit" and checkpoint and Path(checkpoint).is_file():
            write_beside(Path(checkpoint), config.trainer, self.subcommand)
        elif self.subcommand == "fit" and (job := slurm_job()):
            # Lightning leaves what a requeued job goes on from there, and so would others' be.
            config.trainer.default_root_dir = str(
                Path(config.trainer.default_root_dir or "logs/slurm", job)
            )
        elif config.trainer.logger is False:
            root = Path(config.trainer.default_root_dir or "logs/run")
            folders = (root / f"version_{n}" for n in count())
            config.trainer.default_root_dir = str(next(f for f in folders if not f.exists()))
        for logger in as_list(config.trainer.logger):
            kind = getattr(logger, "class_path", "").rpartition(".")[2]
            if kind == "TensorBoardLogger":
                logger.init_args.default_hp_metric = False  # the table is `HyperparameterLog`'s
            elif kind == "CSVLogger" and self.subcommand == "fit":
                keep_metrics(logger.init_args)

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """With the callbacks of options, and those that every run has."""
        trainer, steer, penalties = (
            self._get(self.config_init, name) for name in ("trainer", "steer", "penalties")
        )
        callbacks = [*as_list(trainer.callbacks)]

        def supply(own: type[Callback], kind: type[Callback] | None = None) -> None:
            """Add one of our own where none of its kind is given."""
            if not any(isinstance(callback, kind or own) for callback in callbacks):
                callbacks.append(own())

        supply(HyperparameterLog)
        if steer is not None:
            callbacks.append(steer)
        if penalties is not None and (chosen := penalties.chosen()):
            callbacks.append(PenaltyCallback(*chosen))
        if self.subcommand == "predict":
            supply(PredictionWriter, BasePredictionWriter)
        supply(TrainingClock)
        if trainer.enable_checkpointing is False:
            parser = self._parser(self.subcommand)
            parser.callback_keys = [k for k in parser.callback_keys if k == "guard"]
        if trainer.enable_progress_bar is not False:
            supply(SolverProgressBar, ProgressBar)
        return super().instantiate_trainer(callbacks=callbacks, **settings)


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run's folder, beside those that are there and differ.

    That of ``fit`` is ``config.yaml``, that of a test ``config_test.yaml``, then with a number.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = run_folder(trainer)  # asked for on every rank
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.parser.dump(self.config, skip_none=False)
            stem = "config" if stage == "fit" else f"config_{trainer.state.fn.value}"
            paths = (folder / f"{stem}{f'_{n}' * (n > 0)}.yaml" for n in count())
            path = next(p for p in paths if not p.exists() or p.read_text() == text)
            path.write_text(text)


def write_beside(checkpoint: Path, trainer: Any, subcommand: str) -> None:
    """Let validation, test and prediction go on in the folder and the log of the training run."""
    folder = checkpoint.parent if checkpoint.parent.name else checkpoint.parent.absolute()
    run = folder.parent if folder.name == "checkpoints" else folder
    trainer.default_root_dir = str(run)
    trainer.enable_autolog_hparams = False  # they are the training run's
    for logger in as_list(trainer.logger):
        kind = getattr(logger, "class_path", "").rpartition(".")[2]
        if kind == "TensorBoardLogger":
            place = {"save_dir": str(run.parent), "name": "", "version": run.name}
        elif kind == "CSVLogger":  # which deletes the metrics that it finds in its folder
            names = (f"{subcommand}{f'_{n}' * (n > 0)}" for n in count())
            free = next(name for name in names if not (run / name).exists())
            place = {"save_dir": str(run), "name": "", "version": free}
        # Others keep a run under its identity, in a folder of their own.
        elif kind == "WandbLogger" and run.parent.name == logger.init_args.project:
            place = {"save_dir": str(run.parents[1]), "id": run.name}
        elif kind == "MLFlowLogger" and re.fullmatch("[0-9a-f]{32}", run.name):
            place = {"save_dir": str(run.parents[1]), "run_id": run.name}
            trainer.default_root_dir = str(run.parents[1])  # if it tracks in a database
        else:
            continue
        for name, value in place.items():
            logger.init_args[name] = value


def slurm_job() -> str:
    """The number of the Slurm job that this is, the same once it is requeued; empty elsewhere."""
    if not SLURMEnvironment.detect():
        return ""
    array, place = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{place}" if array else os.environ.get("SLURM_JOB_ID", "")


@rank_zero_only
def keep_metrics(logger: Any) -> None:
    """Move away the metrics that a CSVLogger would delete, of a run that goes on in its folder."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    path = Path(logger.save_dir, logger.name or "", version, "metrics.csv")
    if path.is_file():
        others = (path.with_name(f"metrics_{n}.csv") for n in count(1))
        path.rename(next(other for other in others if not other.exists()))


def follow_steer(trainer: Any, b: float | str) -> None:
    """Name the logs of a Trainer's config after STEER, and let its plots show all end times.

    A sweep with a centre of its own compares models over one range, and keeps it.
    """
    for logger in as_list(trainer.logger):
        init_args = getattr(logger, "init_args", {})
        if (name := init_args.get("name")) and not name.endswith("_steer"):
            init_args.name = f"{name}_steer"
    for callback in as_list(trainer.callbacks):
        moves = callback.class_path.endswith((".EndTimeSweep", ".FeaturePlot"))
        if moves and b != "auto" and callback.init_args.get("t1") is None:
            callback.init_args.b = max(b, callback.init_args.b)


def quieten() -> None:
    """Leave out what every run would print, and what nobody can act on."""
    # PyTorch's, of a class that Lightning's own code uses, and of what its own jvp uses.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")
    # Lightning's: a metric that no validation has logged yet, where a run ends before one.
    warnings.filterwarnings("ignore", ".* could not find the monitored key in the returned metric")
    # Likewise: a default of `torch.load` that each checkpoint brings up, and an advertisement.
    # Both of its packages write to the loggers of the one imported last.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        for name in ("trainer.connectors.checkpoint_connector", "utilities.rank_zero"):
            logging.getLogger(f"{package}.{name}").addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's log is not one that every run prints."""
    idle = "`weights_only` was not set, defaulting to", "💡 Tip: For seamless cloud logging"
    return not record.getMessage().startswith(idle)


def as_list(items: Any) -> list[Any]:
    """Make a list of one thing, several or nothing."""
    return items if isinstance(items, list) else [items] if items else []


def is_refusal(error: Exception) -> bool:
    """Whether an error says itself what to change, so that its traceback is of no use."""
    said = ModuleNotFoundError, BadZipFile, MisconfigurationException, SolverError
    if isinstance(error, said) or (isinstance(error, OSError) and error.filename):
        return True
    if not isinstance(error, ValueError | TypeError | OSError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    checked = OURS + THEIRS if isinstance(error, ValueError) else OURS
    return f"{frame.f_globals.get('__name__')}.".startswith(checked)


def main(args: ArgsType = None, run: bool = True) -> SteerCLI:
    """Run the command line, or the arguments given; or only build what they say."""
    quieten()
    return SteerCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        trainer_defaults={
            "plugins": [{"class_path": "steer_lightning.callbacks.AtomicCheckpointIO"}],
            "logger": {
                "class_path": "TensorBoardLogger",
                "init_args": {"save_dir": "logs", "name": "run"},
            },
        },
        args=args,
        run=run,
    )


if __name__ == "__main__":
    try:
        main()
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except (SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if DEBUG or not is_refusal(error):
            raise
        print(f"error: {one_line(str(error))} (STEER_DEBUG=1 shows where)", file=sys.stderr)
        sys.exit(2)
