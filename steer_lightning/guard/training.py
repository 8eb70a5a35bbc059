"""Drop training batches whose solve failed, under automatic optimisation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer

from steer_lightning.callbacks.step_memories import find_step_memories
from steer_lightning.guard.agreement import agree, can_agree, late_logs
from steer_lightning.solvers import SolverError
from steer_lightning.solvers.foreign import as_solver_error
from steer_lightning.solvers.wrapping import has_adjoint, solve_enclosed, wrapped_solves
from steer_lightning.utils.buffers import keep_buffers
from steer_lightning.utils.patching import WrappedMethods

DROPPED = "solver_dropped"  # in the outputs of a batch whose forward pass failed


def refuse_undroppable(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise where training batches cannot be dropped, on all ranks and before any step."""
    asked = "SolverGuard(policy='skip')"
    if trainer.world_size > 1 and not can_agree(trainer, pl_module):
        raise MisconfigurationException(
            f"Expected DistributedDataParallel (strategy='ddp') without synchronised batch norm "
            f"for {asked} on {trainer.world_size} processes, but got the strategy "
            f"{type(trainer.strategy).__name__} with {type(pl_module).__name__}: its ranks meet "
            f"inside the training step, where one whose solve failed would be missing. Use "
            f"strategy='ddp' and layers that do not synchronise, or policy='raise'."
        )
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"Expected automatic optimisation with {asked}, but {type(pl_module).__name__} "
            f"optimises by hand: which of its steps belong to a failed solve is for its own "
            f"training_step to know. Catch SolverError there, and use policy='raise'."
        )
    if any(s.interval == "step" and s.frequency > 1 for s in trainer.lr_scheduler_configs):
        raise MisconfigurationException(
            f"Expected a schedule of every step or of epochs with {asked}, but got one of every "
            f"few steps, for which Lightning counts batches, those that are dropped too. Let the "
            f"schedule itself count them, with frequency=1, or use policy='raise'."
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise MisconfigurationException(
            f"Expected an optimiser that evaluates once a step with {asked}, but got LBFGS: a "
            f"later evaluation may fail when the weights have moved already. Use policy='raise'."
        )


class GuardedTraining:
    """Wraps the training hooks of a module until :meth:`release`.

    A solve may fail in ``training_step`` or, of an adjoint, in ``backward``. What is dropped is
    the whole optimiser step, with every batch that was accumulated for it: gradients of a failed
    backward pass are of no use. It is dropped before the optimiser begins, so that nothing that
    follows steps sees one: not the optimiser, its moments and hooks, not a schedule that counts
    steps, and not what follows ``trainer.global_step``.

    With several ranks all of them hear of a failure before anything is decided: after the
    training step, and again after the backward pass, which no failure breaks off.

    Args:
        around: Makes a context to be entered for each batch, around its training step.
        place: Called with each error on the rank where it happened.
        failed: Called once for each failed batch, on all ranks; may raise to end the training.
            Without it failures pass through and nothing but ``training_step`` is wrapped.
        drops: Whether training goes on after a failure, so that buffers are to be kept.

    Attributes:
        batch_failed: Whether the batch in hand failed on any rank.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        around: Callable[[], AbstractContextManager[Any]],
        place: Callable[[SolverError], None],
        failed: Callable[[SolverError], None] | None,
        *,
        drops: bool,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.around = around
        self.place = place
        self.failed = failed
        self.drops = drops
        self.batch_failed = False
        self._agrees = can_agree(trainer, module)
        self._window_failed = False  # any of the batches accumulated so far
        self._error: SolverError | None = None  # the first of the pass in hand, on this rank
        self._step_dropped = False
        self._restore: Callable[[], None] | None = None
        self._methods = WrappedMethods(module)
        self._methods.wrap("training_step", self._training_step)
        if failed is not None:
            self._methods.wrap("backward", self._backward)
            self._methods.wrap("optimizer_step", self._optimizer_step)
            self._methods.wrap("lr_scheduler_step", self._lr_scheduler_step)

    def start_batch(self, batch_idx: int) -> None:
        """A batch begins."""
        self.batch_failed = self._step_dropped = False
        self._error = None
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._window_failed = False

    def end_batch(self) -> None:
        """Forget what was kept to put back."""
        self._restore = None

    def release(self) -> None:
        """Put the module's own methods back."""
        self._methods.release()
        self.end_batch()

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.trainer.training:  # called by an evaluation step, which is guarded itself
            return original(*args, **kwargs)
        if self.failed is None:
            with self.around():
                try:
                    return original(*args, **kwargs)
                except Exception as error:
                    failure = as_solver_error(error, "forward")
                    if failure is None or failure is error:
                        raise
                    raise failure from error
        if self.drops:
            self._restore = _snapshot(self.module)
        output, replay = None, None
        with ExitStack() as stack:
            if self._agrees:
                replay = stack.enter_context(late_logs(self.module))
            enclosed = partial(solve_enclosed, self._note)
            stack.enter_context(wrapped_solves(self.module, enclosed, has_adjoint))
            try:
                with self.around():
                    output = original(*args, **kwargs)
            except Exception as error:
                self._note_or_raise(error, "forward")
        self._settle()
        if self.batch_failed:
            # Connected to every parameter, as a reduction of gradients over processes expects.
            parts = [p.flatten()[:0].sum() for p in self.module.parameters() if p.requires_grad]
            return {"loss": torch.stack([part.float() for part in parts]).sum(), DROPPED: True}
        if replay is not None:
            replay()
        return output

    def _backward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        except Exception as error:
            if self.trainer.world_size > 1:  # other ranks wait inside this backward pass
                raise
            self._note_or_raise(error, "backward")
        self._settle()

    def _note_or_raise(self, error: Exception, phase: str) -> None:
        """Note the failure of a solve, of whatever library; any other error goes on."""
        failure = as_solver_error(error, phase)
        if failure is None:
            raise error
        self._note(failure)

    def _note(self, error: SolverError) -> None:
        self.place(error)
        self._error = self._error or error

    def _settle(self) -> None:
        """Hear on all ranks whether this pass failed on one."""
        error, self._error = self._error, None
        if self._agrees:
            error = agree(self.trainer, error)
        if error is None:
            return
        is_first = not self.batch_failed
        self.batch_failed = self._window_failed = True
        if self._restore is not None:
            self._restore()
        if is_first:
            assert self.failed is not None
            self.failed(error)

    def _optimizer_step(
        self,
        original: Callable[..., Any],
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any],
    ) -> None:
        evaluated = False

        def closure() -> Any:
            nonlocal evaluated
            result = optimizer_closure()
            if self._window_failed and evaluated:
                raise MisconfigurationException(
                    f"Expected an optimiser that evaluates once a step with "
                    f"SolverGuard(policy='skip'), but a later evaluation of "
                    f"{type(optimizer).__name__} failed, when it may have moved the weights. Use "
                    f"policy='raise'."
                )
            if self._window_failed:
                raise _StepDropped
            evaluated = True
            return result

        try:
            original(epoch, batch_idx, optimizer, closure)
        except _StepDropped:
            self._window_failed = False
            self._step_dropped = True
            for p in self.module.parameters():
                p.grad = None
            _uncount_step(self.trainer)

    def _lr_scheduler_step(
        self, original: Callable[..., Any], scheduler: Any, metric: Any | None
    ) -> None:
        counts_steps = any(
            config.scheduler is scheduler and config.interval == "step"
            for config in self.trainer.lr_scheduler_configs
        )
        if not (self._step_dropped and counts_steps):
            original(scheduler, metric)


class _StepDropped(Exception):
    """Leaves the optimiser before it steps."""


def _uncount_step(trainer: Trainer) -> None:
    """Take back the step that Lightning's loop counts once ``optimizer_step`` returns.

    Nothing public does; no other place touches that of a running loop.
    """
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    for count in (steps.total, steps.current):
        count.ready -= 1
        count.completed -= 1


def _snapshot(module: LightningModule) -> Callable[[], None]:
    """A function that puts back what a training step changes as it runs.

    That is buffers (running statistics: a batch that holds NaN would leave NaN there) and the
    steps that blocks remember.
    """
    restore_buffers = keep_buffers(module.modules())
    steps = [(memory, dict(memory.steps)) for memory in find_step_memories(module).values()]

    def restore() -> None:
        restore_buffers()
        for memory, kept in steps:
            memory.steps = dict(kept)

    return restore
