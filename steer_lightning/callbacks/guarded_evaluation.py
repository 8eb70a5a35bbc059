"""Evaluation on several ranks, of which one may fail."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from steer_lightning.callbacks.agreement import agree
from steer_lightning.solvers import SolverError


class GuardedEvaluation:
    """The evaluation steps of a module, wrapped on the instance until :meth:`release`.

    Ranks may have different numbers of batches, so they meet in the last one of a loader, before
    Lightning reduces metrics: a rank whose solve failed passes over its other batches, and then
    all ranks raise its error. In prediction nothing is reduced and nobody waits: the rank raises
    at once.

    Args:
        trainer: The trainer.
        module: The module to wrap.
        place: Called with an error on the rank where it happened.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, place: Callable[[SolverError], None]
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.place = place
        self._error: SolverError | None = None
        self._kept: dict[str, Any] = {}
        for name in ("validation_step", "test_step"):
            self._kept[name] = vars(module).get(name)
            vars(module)[name] = self._guarded(getattr(module, name))

    def end_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Raise on all ranks what failed on one, if this was the last batch of a loader."""
        trainer = self.trainer
        if trainer.sanity_checking:
            n_batches = trainer.num_sanity_val_batches
        else:
            n_batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        if batch_idx + 1 != n_batches[dataloader_idx]:
            return
        error, self._error = self._error, None
        _, error = agree(trainer, "fine", error)
        if error is not None:
            raise error

    def release(self) -> None:
        """Put the module's own methods back."""
        for name, own in self._kept.items():
            del vars(self.module)[name]
            if own is not None:
                vars(self.module)[name] = own
        self._kept = {}

    def _guarded(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._error is not None:
                return None
            try:
                return step(*args, **kwargs)
            except SolverError as error:
                self.place(error)
                self._error = error
                return None

        # Lightning reads the signature, and looks behind one wrapper.
        guarded.__wrapped__ = getattr(step, "__wrapped__", step)
        return guarded
