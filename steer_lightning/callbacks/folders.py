"""Where a run's files go."""

from pathlib import Path

from pytorch_lightning import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go; to be asked for on every rank, as the ranks agree on it."""
    return Path(trainer.log_dir or trainer.default_root_dir)
