"""How long training has taken, without evaluation."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class TrainingClock(Callback):
    """Log the time spent in training batches so far, to set metrics against.

    ``train/seconds`` is wall-clock time, ``train/cpu_seconds`` the processor time of all threads
    of this process: on a CPU that other work shares, the fairer of the two. Both leave out
    validation, checkpoints and plots, and continue after a resume.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[TrainingClock()], logger=False)
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._started = (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._started = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock and log it."""
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]
        pl_module.log_dict({f"train/{k}": v for k, v in self.state_dict().items()})

    def state_dict(self) -> dict[str, float]:
        """The times so far."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the times of a checkpoint."""
        self.seconds = state_dict["seconds"]
        self.cpu_seconds = state_dict["cpu_seconds"]
