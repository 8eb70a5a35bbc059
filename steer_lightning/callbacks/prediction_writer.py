"""What ``predict`` returns, on the disk."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.utils.representation import Shown


class PredictionWriter(Shown, BasePredictionWriter):
    """Write what ``predict`` returns, a file for each batch.

    Files go to ``predictions/`` beside the run's logs: ``<rank>_<batch>.pt``, or
    ``<rank>_<loader>_<batch>.pt`` if there are several loaders, to be read by :func:`torch.load`.
    They replace those of a prediction before.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[PredictionWriter()], logger=False)
    """

    kind = "predictions"

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._folder: Path | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer) / self.kind  # asked for on every rank
        self._folder = folder if leaves_files(trainer) else None
        if self._folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            for path in folder.iterdir():
                if re.fullmatch(r"\d+(_\d+)+\.(pt|png)", path.name):
                    path.unlink()
        trainer.strategy.barrier()
        rank_zero_info(f"{self.kind.capitalize()}: {folder}")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if self._folder is not None:
            several = len(trainer.num_predict_batches) > 1
            stem = f"{trainer.global_rank}_{f'{dataloader_idx}_' * several}{batch_idx}"
            self.write(pl_module, prediction, self._folder / stem)
        if trainer.received_sigterm:  # Lightning looks in training and evaluation alone
            raise SIGTERMException

    def write(self, pl_module: LightningModule, prediction: Any, path: Path) -> None:
        """Write the prediction of a batch to a path without its ending."""
        torch.save(move_data_to_device(prediction, "cpu"), path.with_suffix(".pt"))
