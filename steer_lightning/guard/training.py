"""Training batches whose solve failed: dropped, or solved again, under automatic optimisation."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from steer_lightning.callbacks.step_memories import StepMemories, find_step_memories
from steer_lightning.guard.agreement import LateLogs, Outcome, agree, can_agree, worst
from steer_lightning.solvers import SolverError
from steer_lightning.solvers.replacing import on_fixed_grid, replaced_solvers, wrapped_solves
from steer_lightning.solvers.rescued import Gradients, RescuedAdjoint
from steer_lightning.utils.patching import WrappedMethods

DROPPED = "solver_dropped"  # in the outputs of a batch whose forward pass failed


class GuardedTraining:
    """The training hooks of a module, wrapped on the instance until :meth:`release`.

    A solve may fail in ``training_step`` or, of an adjoint, in ``backward``. What is dropped is
    the whole optimiser step, with every batch that was accumulated for it: gradients of a failed
    backward pass are of no use. It is dropped before the optimiser begins, so that nothing that
    follows steps sees one: not the optimiser, its moments and hooks, not a schedule that counts
    steps, and not what follows ``trainer.global_step``.

    With several ranks all of them hear of a failure before anything is decided: after the
    training step, and again after the backward pass, which no failure breaks off.

    Args:
        trainer: The trainer.
        module: The module to wrap.
        around: Makes a context to be entered for each batch, around the first attempt.
        place: Called with each error on the rank where it happened.
        failed: Called once for each failed batch, on all ranks; may raise to end the training.
            Without it failures pass through and nothing but ``training_step`` is wrapped.
        fallback_steps: Steps of the fixed grid to try again on; ``None`` to drop at once.
        drops: Whether training goes on after a failure, so that buffers are to be kept.

    Attributes:
        outcome: What became of the batch in hand, on the rank where it went worst.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        around: Callable[[], AbstractContextManager[Any]],
        place: Callable[[SolverError], None],
        failed: Callable[[SolverError], None] | None = None,
        fallback_steps: int | None = None,
        *,
        drops: bool = True,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.around = around
        self.place = place
        self.failed = failed
        self.fallback_steps = fallback_steps
        self.drops = drops
        self.outcome: Outcome = "fine"
        self._agrees = can_agree(trainer, module)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._memories = next((c for c in callbacks if isinstance(c, StepMemories)), None)
        self._window: Outcome = "fine"  # the worst outcome of the batches accumulated so far
        self._here: Outcome = "fine"  # of the pass in hand, on this rank
        self._error: SolverError | None = None  # the first of that pass
        self._step_dropped = False
        self._before: _BatchState | None = None
        self._methods = WrappedMethods(module)
        self._methods.wrap("training_step", self._training_step)
        if failed is not None:
            self._methods.wrap("backward", self._backward)
            self._methods.wrap("optimizer_step", self._optimizer_step)
            self._methods.wrap("lr_scheduler_step", self._lr_scheduler_step)

    def start_batch(self, batch_idx: int) -> None:
        """A batch begins."""
        self.outcome = self._here = "fine"
        self._error = None
        self._step_dropped = False
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._window = "fine"

    def end_batch(self) -> None:
        """Forget what was kept to put back."""
        self._before = None

    def release(self) -> None:
        """Put the module's own methods back."""
        self._methods.release()
        self.end_batch()

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.failed is None:
            with self.around():
                return original(*args, **kwargs)
        if self.drops:
            self._before = _BatchState(self.module, streams=self.fallback_steps is not None)
        logs = LateLogs(self.module) if self._agrees else None
        with ExitStack() as stack:
            if logs is not None:
                stack.enter_context(logs)
            stack.enter_context(wrapped_solves(self.module, self._rescued))
            try:
                with self.around():
                    output = original(*args, **kwargs)
            except SolverError as error:
                self._note(error)
                if logs is not None:
                    logs.forget()
                output = self._try_again(lambda: original(*args, **kwargs))
        self._settle()
        if self.outcome == "skipped":
            # Connected to every parameter, as a reduction of gradients over processes expects.
            parts = [p.flatten()[:0].sum() for p in self.module.parameters() if p.requires_grad]
            return {"loss": torch.stack([part.float() for part in parts]).sum(), DROPPED: True}
        if logs is not None:
            logs.replay()
        return output

    def _backward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        self._settle()

    def _rescued(self, solver: Any, solve: Callable[..., Any]) -> Callable[..., Any]:
        """A solver's ``solve``; where it has an adjoint, one whose failure breaks nothing off."""
        if getattr(solver, "gradient", None) != "adjoint":
            return solve

        def rescue(error: SolverError, gradients_by: Callable[..., Gradients]) -> Gradients | None:
            self._note(error)
            gradients = None
            if self._may_try_again:
                assert self.fallback_steps is not None
                try:
                    gradients = gradients_by(on_fixed_grid(self.fallback_steps)(solver).solve)
                except SolverError as again:
                    self._note(again)
            if gradients is None or not all(g is None or g.isfinite().all() for g in gradients):
                self._here = "skipped"
                return None
            self._here = "fallback"
            return gradients

        return RescuedAdjoint(solve, rescue)

    def _note(self, error: SolverError) -> None:
        """A solve failed on this rank."""
        self.place(error)
        if self.fallback_steps is not None:
            error.__traceback__ = None  # it holds the graph of the attempt; another follows
        self._error = self._error or error

    @property
    def _may_try_again(self) -> bool:
        return self.fallback_steps is not None and worst(self._window, self._here) != "skipped"

    def _try_again(self, step: Callable[[], Any]) -> Any:
        """Output of the training step on a fixed grid; ``None`` if that is no better."""
        self._here = "skipped"
        if self.fallback_steps is None or self._window == "skipped":
            return None
        assert self._before is not None
        self._before.restore()
        try:
            with replaced_solvers(self.module, on_fixed_grid(self.fallback_steps)):
                output = step()
        except SolverError as error:
            self._note(error)
            return None
        if output is None or not bool(_loss(output).isfinite()):
            return None
        self._here = "fallback"
        return output

    def _settle(self) -> None:
        """What became of this pass, on all ranks."""
        outcome, error = self._here, self._error
        self._here, self._error = "fine", None
        if self._agrees:
            outcome, error = agree(self.trainer, outcome, error, self._memories)
        is_first = self.outcome == "fine"
        self.outcome = worst(self.outcome, outcome)
        self._window = worst(self._window, outcome)
        if outcome == "skipped":
            self._drop()
        if error is not None and is_first:
            assert self.failed is not None
            self.failed(error)

    def _drop(self) -> None:
        self.outcome = self._window = "skipped"
        if self._before is not None:
            self._before.restore_buffers()

    def _optimizer_step(
        self,
        original: Callable[..., Any],
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any],
    ) -> None:
        def closure() -> Any:
            result = optimizer_closure()
            if self._window == "fallback" and not self._gradients_are_finite():
                self._drop()
            if self._window == "skipped":
                raise _StepDropped
            return result

        try:
            original(epoch, batch_idx, optimizer, closure)
        except _StepDropped:
            self._window = "fine"
            self._step_dropped = True
            for p in self.module.parameters():
                p.grad = None
            # The loop counts a step once this returns.
            loop = self.trainer.fit_loop.epoch_loop.automatic_optimization
            steps = loop.optim_progress.optimizer.step
            for count in (steps.total, steps.current):
                count.ready -= 1
                count.completed -= 1

    def _gradients_are_finite(self) -> bool:
        """Whether they are; a gradient scaler looks for itself, and skips the step."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return True
        gradients = (p.grad for p in self.module.parameters() if p.grad is not None)
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

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


class _BatchState:
    """What a training step changes as it runs, as it was before.

    Buffers (running statistics: a batch that holds NaN would leave NaN there), the steps that
    blocks remember, and, to see the same noise again, torch's random streams and the count of the
    module's own (``stream_count``).
    """

    def __init__(self, module: LightningModule, *, streams: bool) -> None:
        self._module = module
        self._buffers = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        self._steps = [(m, dict(m.steps)) for m in find_step_memories(module).values()]
        self._count = getattr(module, "stream_count", None)
        self._on_cuda = module.device.type == "cuda"
        if streams:
            self._cpu = torch.get_rng_state()
            self._cuda = torch.cuda.get_rng_state(module.device) if self._on_cuda else None

    @torch.no_grad()
    def restore_buffers(self) -> None:
        for owner, name, buffer, before in self._buffers:
            setattr(owner, name, buffer)  # a step may have put another tensor there
            buffer.copy_(before)
        for memory, steps in self._steps:
            memory.steps = dict(steps)

    def restore(self) -> None:
        self.restore_buffers()
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._module.device)
        if self._count is not None:
            self._module.stream_count = self._count


def _loss(output: Any) -> Tensor:
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
    return loss
