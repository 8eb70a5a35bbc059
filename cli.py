"""Train, validate, test, predict: ``python cli.py fit --config configs/cnf/toy2d.yaml``.

``--steer.b=0.5`` trains with STEER; every argument of ``SteerCallback`` is an option.
"""

from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch.optim import Optimizer

# Imported so that short class names resolve on the command line.
import datamodules  # noqa: F401
import steer_lightning.callbacks.plots.end_time_sweep
import steer_lightning.callbacks.plots.features
import steer_lightning.callbacks.plots.samples
import steer_lightning.modules  # noqa: F401
from steer_lightning.callbacks import LastCheckpoint, SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.modules.base import TaskModule


class SteerCLI(LightningCLI):
    """LightningCLI with model and data chosen by class, and the defaults of this project."""

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
            self._parser(self.subcommand).callback_keys.insert(0, "steer")
            follow_steer(config.trainer, config.steer.init_args.b)


def follow_steer(trainer: Any, b: float | str) -> None:
    """Name the logs of a Trainer's config after STEER, and let its plots show all end times."""
    for logger in as_list(trainer.logger):
        init_args = getattr(logger, "init_args", {})
        if (name := init_args.get("name")) and not name.endswith("_steer"):
            init_args.name = f"{name}_steer"
    for callback in as_list(trainer.callbacks):
        if b != "auto" and callback.class_path.endswith((".EndTimeSweep", ".FeaturePlot")):
            callback.init_args.b = max(b, callback.init_args.b)


def as_list(items: Any) -> list[Any]:
    """Make a list of one thing, several or nothing."""
    return items if isinstance(items, list) else [items] if items else []


def main(args: ArgsType = None, run: bool = True) -> SteerCLI:
    """Run the command line, or the arguments given; or only build what they say."""
    return SteerCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
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
    main()
