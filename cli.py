"""Train, validate, test, predict: ``python cli.py fit --config configs/cnf/toy2d.yaml``.

``--steer.b=0.5`` trains with STEER, ``--penalties.acceleration=0.1`` with a penalty on the
trajectory; their arguments are options.
"""

import logging
import signal
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import register_type
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter, ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from command_line.folders import SaveConfig, as_list, choose_folder, keep_metrics
from command_line.parser import OneLineParser, debugging, is_refusal, one_line
from steer_lightning.callbacks import (
    HyperparameterLog,
    LastCheckpoint,
    PenaltyCallback,
    PredictionWriter,
    SolverProgressBar,
    SteerCallback,
    TrainingClock,
)
from steer_lightning.guard import SolverGuard
from steer_lightning.penalties import (
    Acceleration,
    JacobianNorm,
    KineticEnergy,
    LocalError,
    Penalty,
    Stiffness,
    TrajectoryPolynomial,
)

register_type(torch.device)  # so that `config.yaml` holds one as text, as Lightning's callbacks do


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
            help="Let matrix products, convolutions and recurrent layers of GPUs round to TF32; "
            "torch's own choice (all but matrix products) if not given.",
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

    def before_instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.tf32 is not None:
            # Not one operation at a time, after which Lightning and torch refuse to read them.
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = config.tf32
        if config.steer is not None:
            b = config.steer.init_args.b
            follow_steer(config.trainer, max(b.start, b.end) if hasattr(b, "start") else b)
        settings = config.model.get("init_args", {})
        own = ("optimizer", "lr_scheduler", "lr_interval")
        if all(name in settings for name in own):  # a task's, so that its hyperparameters say so
            for name in own[:2]:
                if (given := config.get(name)) is not None:
                    if name == "lr_scheduler" and settings[name] is not None:
                        settings.lr_interval = "epoch"  # the other one was that of its own
                    settings[name], config[name] = given, None
        elif config.get("lr_scheduler") and not config.get("optimizer"):
            self.parser.error(
                "Expected --optimizer beside --lr_scheduler, which does nothing alone"
            )
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
        choose_folder(config, self.subcommand)
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
        if debugging() or not is_refusal(error):
            raise
        print(f"error: {one_line(str(error))} (STEER_DEBUG=1 shows where)", file=sys.stderr)
        sys.exit(2)
