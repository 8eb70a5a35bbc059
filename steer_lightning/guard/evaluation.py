"""End an evaluation on all ranks if a solve fails on one."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from steer_lightning.guard.agreement import agree
from steer_lightning.solvers import SolverError
from steer_lightning.solvers.foreign import as_solver_error
from steer_lightning.utils.patching import WrappedMethods


class GuardedEvaluation:
    """Wraps the evaluation steps of a module until :meth:`release`.

    Ranks may have different numbers of batches, so they meet in the last one of a loader, before
    Lightning reduces metrics: a rank whose solve failed passes over its other batches, and then
    all ranks raise its error. In prediction nothing is reduced and nobody waits: the rank raises
    at once.

    Args:
        place: Called with an error on the rank where it happened.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, place: Callable[[SolverError], None]
    ) -> None:
        self.trainer = trainer
        self.place = place
        self._error: SolverError | None = None
        self._methods = WrappedMethods(module)
        for name in ("validation_step", "test_step"):
            self._methods.wrap(name, self._guarded)

    def end_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Raise on all ranks what failed on one, if this was the last batch of a loader."""
        loops: dict[TrainerFn | None, Any] = {
            TrainerFn.FITTING: self.trainer.fit_loop.epoch_loop.val_loop,
            TrainerFn.VALIDATING: self.trainer.validate_loop,
            TrainerFn.TESTING: self.trainer.test_loop,
        }
        loop = loops[self.trainer.state.fn]
        # The loop knows the last batch of a loader without a length.
        if batch_idx + 1 == loop.max_batches[dataloader_idx] or loop.batch_progress.is_last_batch:
            self.end()

    def end(self) -> None:
        """Raise on all ranks, which must all call it, what failed on one.

        At the end of an evaluation too: a loader may have fewer batches than known.
        """
        error, self._error = agree(self.trainer, self._error), None
        if error is not None:
            raise error

    def release(self) -> None:
        """Put the module's own methods back."""
        self._methods.release()

    def _guarded(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._error is None:
            try:
                return step(*args, **kwargs)
            except Exception as error:
                failure = as_solver_error(error, "forward")
                if failure is None:
                    raise
                self.place(failure)
                self._error = failure
        return None
