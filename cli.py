"""Train, validate, test, predict: ``python cli.py fit --config configs/cnf/toy2d_steer.yaml``."""

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser

# Imported so that short class names resolve on the command line.
import datamodules  # noqa: F401
import steer_lightning.callbacks.plots.end_time_sweep
import steer_lightning.callbacks.plots.features
import steer_lightning.callbacks.plots.samples
import steer_lightning.modules  # noqa: F401
from steer_lightning.callbacks import LastCheckpoint
from steer_lightning.command_line import VersionedCLI
from steer_lightning.guard import SolverGuard


class SteerCLI(VersionedCLI):
    """LightningCLI with model and data chosen by class, and the defaults of this project."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--tf32",
            type=bool | None,
            default=None,
            help="Let matrix products and convolutions of GPUs round to TF32; torch's own choice "
            "(convolutions only) if not given.",
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
            precision = "tf32" if config.tf32 else "ieee"
            torch.backends.cuda.matmul.fp32_precision = precision
            torch.backends.cudnn.conv.fp32_precision = precision


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
