"""Models and data of the configs, built as the command line does."""

import os
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

import cli

ROOT = Path(__file__).parents[1]
DATA_DIR = Path(os.environ.get("STEER_DATA_DIR", ROOT.parent / "shared" / "data"))


def build(config: str, *overrides: str) -> tuple[Any, LightningDataModule]:
    """Module and data of ``configs/<config>.yaml``."""
    path = str(ROOT / "configs" / f"{config}.yaml")
    built = cli.main(["--config", path, "--trainer.accelerator=cpu", *overrides], run=False)
    return built.model, built.datamodule
