"""Callbacks with a state that belongs to a training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from steer_lightning.utils.representation import Shown


def left_out(pl_module: LightningModule, outputs: Any) -> bool:
    """Whether a training batch has no solves to look for, by the outputs of its step.

    The step may have returned ``None``, or a solve that failed kept others from being tried.
    """
    failed = isinstance(outputs, Mapping) and "solver_dropped" in outputs
    return failed or (pl_module.automatic_optimization and not outputs)


class RunState(Shown, Callback, ABC):
    """Base of callbacks with state: reset when a training starts, restored when it is resumed.

    A validation, test or prediction from a checkpoint leaves it as it is: Lightning gives all
    callbacks the state of that checkpoint.
    """

    _trains = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trains = stage == "fit"
        if self._trains and trainer.global_step == 0:  # a checkpoint is loaded after this
            self.start_anew()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._trains:
            self.go_on(state_dict)

    @abstractmethod
    def start_anew(self) -> None:
        """Forget an earlier training."""

    @abstractmethod
    def go_on(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
