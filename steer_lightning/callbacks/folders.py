"""Where a run's files go."""

from pathlib import Path

from pytorch_lightning import Trainer


def leaves_files(trainer: Trainer) -> bool:
    """Whether a run writes files; ``fast_dev_run`` only tries what the run would do."""
    return not getattr(trainer, "fast_dev_run", False)


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go; to be asked for on every rank, as the ranks agree on it.

    It holds the folder ``checkpoints`` of Lightning's ``ModelCheckpoint``, whatever the logger.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    logger = trainer.logger
    if logger is None or logger.log_dir is not None:
        return folder
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    own = folder / str(logger.name) / version  # `log_dir` is one for all runs of such a logger
    return Path(trainer.strategy.broadcast(own))
