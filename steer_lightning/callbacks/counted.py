"""Callbacks whose random draws go on exactly when a run is resumed."""

from abc import abstractmethod
from dataclasses import is_dataclass
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from steer_lightning.callbacks.run_state import RunState
from steer_lightning.utils.seeding import default_seed


class CountedDraws(RunState):
    """Base of callbacks with draws that depend on a seed and a count of training batches.

    Args:
        seed: Seed of the draws; ``PL_GLOBAL_SEED`` or torch's initial seed if not given. The
            seed of a checkpoint takes precedence.
        settings: What a resumed run is compared with, as plain values.
    """

    def __init__(self, seed: int | None, settings: dict[str, Any]) -> None:
        self.seed = self._asked_seed = None if seed is None else int(seed)
        self._plain = settings
        self._step = 0
        self._in_hand = 0  # batches that have begun and not ended: a resumed run repeats them

    def state_dict(self) -> dict[str, Any]:
        """Seed, count of batches and settings, as plain values."""
        done = self._step - self._in_hand
        return {"seed": self.seed, "step": done, "settings": self._plain}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say so where it joins a training that goes on."""
        if self._trains and self.state_key not in checkpoint["callbacks"]:
            name = type(self).__name__
            rank_zero_warn(f"{name} begins here: the checkpoint was trained without {self}.")

    def go_on(self, state_dict: dict[str, Any]) -> None:
        """Continue the draws of a checkpoint; its seed wins, the settings asked for win."""
        name = type(self).__name__
        stored_settings = state_dict["settings"]
        for key in {**stored_settings, **self._plain}:
            before, now = stored_settings.get(key), self._plain.get(key)
            if before != now:
                rank_zero_warn(
                    f"{name} goes on with {key}={now!r}; the checkpoint was trained with "
                    f"{key}={before!r}."
                )
        stored = state_dict["seed"]
        if self._asked_seed is not None and stored is not None and stored != self._asked_seed:
            rank_zero_warn(
                f"{name} continues with the seed of the checkpoint, {stored}, and not with "
                f"seed={self._asked_seed}, so that the draws go on as they began."
            )
        self.seed, self._step, self._in_hand = stored, state_dict["step"], 0

    def start_anew(self) -> None:
        self.seed, self._step, self._in_hand = self._asked_seed, 0, 0

    def agreed_seed(self, trainer: Trainer) -> int:
        """The seed of this run, that of the first rank where none was given."""
        if self.seed is None:
            self.seed = int(trainer.strategy.broadcast(default_seed()))
        return self.seed

    def next_step(self) -> int:
        """The count of the batch that begins."""
        self._step += 1
        self._in_hand = 1
        return self._step - 1

    @abstractmethod
    def rest(self) -> None:
        """Let the model be as it was found until the next batch."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rest()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_hand = 0  # a batch that was skipped had no end of its own
        self.rest()

    @abstractmethod
    def release(self) -> None:
        """Leave the model as it was found."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.release()  # Lightning calls no teardown after this

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release()


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values, a dataclass in them as text."""
    return {k: str(v) if is_dataclass(v) else v for k, v in vars(settings).items()}
