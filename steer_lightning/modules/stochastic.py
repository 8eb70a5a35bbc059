"""Base class of the tasks with noise in their loss."""

from typing import Any

import torch

from steer_lightning.modules.base import TaskModule
from steer_lightning.utils.seeding import default_seed, stream


class StochasticTaskModule(TaskModule):
    """Base of tasks with noise in their loss, which comes from a random stream of its own.

    The stream is keyed by seed, stage, count of batches and rank: the global stream is not
    touched, every validation sees the same noise, and a resumed run continues it.
    """

    stream_name = "noise"

    def __init__(self, **optimization: Any) -> None:
        super().__init__(**optimization)
        self._noise_seed: int | None = None
        self._train_batches = 0
        self._in_hand = 0  # of them: a resumed run repeats a batch that did not end
        self._in_batch = False  # of a Trainer, all closures of which have the same noise

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.trainer.global_step == 0:  # a checkpoint is read after this
            self._noise_seed, self._train_batches, self._in_hand = None, 0, 0
        if self._noise_seed is None:
            self._noise_seed = int(self.trainer.strategy.broadcast(default_seed()))

    def noise_stream(self, *key: object) -> torch.Generator:
        """The random stream of a batch, on this module's device."""
        seed = default_seed() if self._noise_seed is None else self._noise_seed
        return stream(self.device, self.stream_name, seed, *key, self.global_rank)

    def next_training_stream(self) -> torch.Generator:
        """The random stream of the training batch in hand; without a Trainer, of the next one."""
        if not self._in_batch:
            self._begin_batch()
        return self.noise_stream("train", self._train_batches - 1)

    def _begin_batch(self) -> None:
        self._train_batches += 1
        self._in_hand += 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._begin_batch()
        self._in_batch = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._in_hand, self._in_batch = 0, False

    on_train_epoch_end = on_train_batch_end  # of a batch that was skipped

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        in_hand = self._in_hand
        if self._trainer is not None:  # callbacks save before this module hears of a batch's end
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            in_hand = min(in_hand, progress.ready - progress.processed)
        checkpoint["noise"] = {"seed": self._noise_seed, "batches": self._train_batches - in_hand}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        noise = checkpoint.get("noise")
        if noise is not None:
            self._noise_seed = noise["seed"]
        if noise is not None and self._goes_on:
            self._train_batches, self._in_hand = noise["batches"], 0
