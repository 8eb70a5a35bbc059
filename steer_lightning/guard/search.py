"""Searches for a learning rate, which go on until something breaks."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from steer_lightning.solvers.foreign import as_solver_error
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.patching import WrappedMethods


def guard_search(trainer: Trainer, module: LightningModule) -> WrappedMethods:
    """Let a solve that fails end the search for a learning rate, and not the run.

    Lightning's finder runs before all other callbacks, without them, and puts weights and
    optimiser back. It raises the rate until the loss diverges; a vector field becomes too stiff
    before that. Nothing is wrapped where there is no finder, or several ranks that would wait for
    the one that failed.
    """
    methods = WrappedMethods(module)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    searches = any(is_lightning(c, "callbacks", "LearningRateFinder") for c in callbacks)
    if trainer.world_size == 1 and searches:
        for name in ("training_step", "backward", "validation_step"):
            methods.wrap(name, partial(_stop_at_failure, trainer))
    return methods


def _stop_at_failure(
    trainer: Trainer, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    try:
        return original(*args, **kwargs)
    except Exception as error:
        if as_solver_error(error, "forward") is None:
            raise
        if not trainer.should_stop:
            rank_zero_info(f"The search for a learning rate ends where a solve fails: {error}")
        trainer.should_stop = True
        return None
