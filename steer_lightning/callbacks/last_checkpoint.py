"""The newest state of a run, always."""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.representation import Shown


class LastCheckpoint(Shown, Checkpoint):
    """Keep ``last.ckpt`` at the newest state, so that a run that stops loses little or nothing.

    It is written after each validation and each epoch, at the end of training, and every
    ``every_n_train_steps`` optimiser steps if asked, over the one before: with
    :class:`~steer_lightning.callbacks.AtomicCheckpointIO` there is a whole one at any time. (The
    ``save_last`` of Lightning's ``ModelCheckpoint`` follows the best ones, and may be older.)
    Where a validation follows a step, it is written after that. ``ckpt_path="last"`` finds it
    beside a ``ModelCheckpoint`` alone; else give its path, ``callback.path``.

    Ctrl-C stops a run of one process as soon as it can be written: after the batch in hand, and
    the validation that follows it if one does. Pressed again, it stops at once. SIGTERM, as
    ``timeout`` and schedulers send it, stops after the batch in hand, and finds it written unless
    a validation is due there. Runs of several processes stop with what was last written.

    It is not written within a window of accumulated gradients, which no checkpoint holds; a run
    that a timer stops there loses the window. In a list of callbacks it belongs behind
    ``ModelCheckpoint``, whose best scores it keeps.

    Args:
        every_n_train_steps: Write it every so many optimiser steps besides.
        dirpath: Its folder; that of the first ``ModelCheckpoint`` of the Trainer if not given,
            or else ``checkpoints`` in the run's folder.

    Raises:
        ValueError: If ``every_n_train_steps`` is smaller than 1.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from pytorch_lightning.callbacks import ModelCheckpoint
        >>> best = ModelCheckpoint(monitor="val/loss")
        >>> trainer = Trainer(callbacks=[best, LastCheckpoint(100)], logger=False)
    """

    def __init__(
        self, every_n_train_steps: int | None = None, dirpath: str | Path | None = None
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(
                f"Expected `every_n_train_steps` to be None or >= 1, but got "
                f"{every_n_train_steps}."
            )
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self.path: Path | str | None = None  # an address of a remote folder is text
        self._best: Any = None
        self._saved_at = 0
        self._interrupted = False
        self._handler: Any = None

    @property
    def best_model_path(self) -> str:
        """What a Trainer asks of its first checkpoint callback, of whichever kind it is."""
        return str((self.path if self._best is None else self._best.best_model_path) or "")

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """What a process that it spawned tells a Trainer."""
        self.path, self._best = path, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every = trainer.checkpoint_callbacks  # they have found their folders by now
        models = (c for c in every if is_lightning(c, "callbacks", "ModelCheckpoint"))
        self._best = next(models, None)
        folder = self.dirpath or (self._best and self._best.dirpath)
        own = run_folder(trainer) / "checkpoints"  # asked for on every rank
        if "://" in str(folder):
            self.path = f"{folder}/last.ckpt"
        else:
            self.path = Path(folder or own) / "last.ckpt"
            if trainer.is_global_zero:
                _remove_what_a_kill_left(self.path.parent)
        self._interrupted = False
        self._saved_at = trainer.global_step  # there is nothing new in it yet
        alone = trainer.world_size == 1 and leaves_files(trainer)
        if alone and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        _count_what_ended(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write it if it is time to, or if the run is to stop here.

        Not before a validation that is due, which a resumed run would leave out; and not after
        the hooks of an epoch that is cut short, from which it would begin another epoch.
        """
        n, step = self.every_n_train_steps, trainer.global_step
        is_time = n is not None and step // n > self._saved_at // n
        signalled = self._interrupted or (trainer.received_sigterm and trainer.world_size == 1)
        breaks_off = signalled and not _accumulates(trainer, batch_idx)
        epochs_done = trainer.current_epoch >= (trainer.min_epochs or 0)
        may_stop = epochs_done and step >= (trainer.min_steps or 0)
        # A batch may take several steps.
        stops = (trainer.should_stop and may_stop) or -1 < trainer.max_steps <= step
        if (is_time or breaks_off or stops) and not _validation_follows(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        if trainer.sanity_checking or trainer.is_last_batch or _accumulates(trainer, batch_idx):
            return
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:
            # The first rank's progress bar has reduced the means of the epoch by now; others
            # would wait for it in the checkpoint.
            _ = trainer.callback_metrics
            self._save(trainer)
        _count_what_ended(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer)
        self._release()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let loggers' steps, and a run with ``max_steps``, go on as they would have.

        Lightning counts a step of loggers after all hooks of a batch, and makes up for it in a run
        that goes on: also where a batch did not end, and not after a validation that is not due.
        """
        _go_on_from_an_epochs_end(trainer, checkpoint)
        loop = checkpoint["loops"]["fit_loop"]
        batches, steps = loop["epoch_loop.batch_progress"], loop["epoch_loop.state_dict"]
        n_ready = batches["current"]["ready"]
        if trainer.state.fn != TrainerFn.FITTING or _accumulates(trainer, n_ready - 1):
            return
        if n_ready > batches["current"]["processed"]:
            steps["_batches_that_stepped"] -= 1
        elif trainer.validating and not _validation_follows(trainer, n_ready - 1):
            steps["_batches_that_stepped"] += 1

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A checkpoint of a run without ``max_steps``, for one that has them."""
        if trainer.state.fn == TrainerFn.FITTING and "loops" in checkpoint:
            _go_on_from_an_epochs_end(trainer, checkpoint)

    def _save(self, trainer: Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not leaves_files(trainer):
            return
        assert self.path is not None
        trainer.save_checkpoint(self.path)
        self._saved_at = trainer.global_step
        if self._interrupted:
            rank_zero_info(f"Stopped. Go on from here with --ckpt_path {self.path}")
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first Ctrl-C; the next one is the handler's that was there before."""
        self._interrupted = True
        self._release()
        rank_zero_info(
            "\nCtrl-C: stopping after this batch (or validation). Press it again to stop at once."
        )

    def _release(self, *_: Any, **__: Any) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    teardown = _release

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._release()
        if isinstance(exception, SIGTERMException) and self.path is not None:
            is_there = isinstance(self.path, str) or self.path.is_file()
            left = f"Go on with --ckpt_path {self.path}" if is_there else "Nothing is left"
            rank_zero_info(f"Stopped by SIGTERM. {left}")


def _remove_what_a_kill_left(folder: Path) -> None:
    """Unfinished files: of ``last.ckpt``, and old ones, as other runs may write to the folder."""
    for path in folder.glob(".*.ckpt." + 32 * "[0-9a-f]"):
        with suppress(FileNotFoundError):
            if path.name.startswith(".last.") or time.time() - path.stat().st_mtime > 3600.0:
                path.unlink()


def _count_what_ended(trainer: Trainer) -> None:
    """Leave out a batch that is repeated, or that the module skipped, from Lightning's totals.

    Else it would never again find that a batch has ended, in any checkpoint of the run.
    """
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    if total.ready > total.processed:
        total.ready = total.started = total.processed
    elif total.ready > total.started:
        total.started = total.completed = total.ready


def _go_on_from_an_epochs_end(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Say of the end of an epoch, in a run with ``max_steps``, that it is its last batch's.

    Lightning takes such a run to be within an epoch always, and would count the next one wrong.
    It goes on exactly from the end of an epoch's last batch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    total = loop["epoch_progress"]["total"]
    at_epoch_end = total["processed"] == total["started"] == total["completed"] + 1
    if at_epoch_end and trainer.max_steps != -1:
        for progress, count in (
            (loop["epoch_progress"], "processed"),
            (loop["epoch_loop.batch_progress"], "completed"),
        ):
            progress["total"][count] -= 1
            progress["current"][count] -= 1
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # it is added again


def _accumulates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether there are gradients that no optimiser step has used."""
    return not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches != 0


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the Trainer validates after this training batch, by its settings."""
    every, n_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or n_batches is None:  # none, or by the clock
        return False
    if every is None:
        return (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % n_batches == 0
    if (trainer.current_epoch + 1) % every:
        return False
    if n_batches == float("inf"):  # at the end of a loader of unknown length
        return trainer.is_last_batch
    return (batch_idx + 1) % n_batches == 0
