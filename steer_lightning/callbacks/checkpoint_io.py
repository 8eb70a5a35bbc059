"""Checkpoint files that are never cut short."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from steer_lightning.utils.io import check_whole, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: a kill while one is written leaves the last one.

    Lightning writes to the system's temporary folder and moves the file, which is a copy where
    the checkpoints lie on another file system, and can be cut short. This writes beside the
    target, flushes to the disk and renames. Remote paths (``s3://...``) are left to Lightning.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; missing folders are made.

        Raises:
            TypeError: If there are storage options, which Lightning does not take here either.
            OSError: If the file cannot be written; it names the file.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            writer = ("inline_container", "iostream error", "PytorchStreamWriter")
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in writer):
                raise
            raise OSError(
                f"Expected to write {path}, but could not: {error}. Is the disk full? What was "
                f"there before is whole."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **settings: Any) -> dict[str, Any]:
        """Read a checkpoint; a broken one is a ``BadZipFile`` that names the file.

        Raises:
            ValueError: If it holds something else than a checkpoint.
        """
        if Path(path).is_file():
            check_whole(Path(path))
        try:
            found: dict[str, Any] = super().load_checkpoint(path, *args, **settings)
        except UnpicklingError as error:
            raise ValueError(
                f"Expected a checkpoint of plain values and tensors in {path}, but got objects: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if "pytorch-lightning_version" not in found:
            raise ValueError(
                f"Expected a checkpoint of a training in {path}, but it holds {list(found)[:5]}."
            )
        return found
