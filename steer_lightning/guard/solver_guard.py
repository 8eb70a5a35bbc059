"""What happens to a batch whose solve fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from steer_lightning.callbacks.folders import run_folder
from steer_lightning.guard.agreement import can_agree
from steer_lightning.guard.evaluation import GuardedEvaluation
from steer_lightning.guard.health import FieldCheck, RandomFields, StepWatch
from steer_lightning.guard.refusals import refuse_unguardable
from steer_lightning.guard.training import GuardedTraining
from steer_lightning.solvers import RepeatedFailureError, SolverError
from steer_lightning.steering.targets import find_stats
from steer_lightning.utils.checks import check_choice

Policy = Literal["raise", "skip", "fallback"]


class SolverGuard(Callback):
    r"""Say where a solve failed, and drop its batch or solve it again if asked.

    Every :class:`~steer_lightning.solvers.SolverError` gets the path of its block, stage, epoch,
    batch and rank. In validation, test and prediction it always ends the run. In training:

    - ``"raise"`` ends the run there too;
    - ``"skip"`` drops the batch, whether the forward solve failed or the adjoint's: weights,
      optimiser, schedules that count steps, buffers (running statistics) and
      ``trainer.global_step`` stay as they were. With gradient accumulation all batches that were
      accumulated for the step are dropped with it, but for what those before the failed one did
      to buffers;
    - ``"fallback"`` runs the training step again with rk4 on a fixed grid in place of every
      adaptive solver, at the same end times and with the same noise (of torch's random streams
      and of the module's own). Metrics that the step updates itself may count that batch twice.
      Where only an adjoint failed, its gradients alone are replaced, by those through a solve on
      the fixed grid. A batch whose loss or gradient is not finite even then is dropped as by
      ``"skip"``.

    What draws by a count of batches (STEER, the noise of this library's modules) counts a dropped
    batch too. A batch whose forward pass failed has a loss of zero and ``"solver_dropped"`` among
    its outputs. ``solver/skipped`` and ``solver/fallbacks`` are logged, and go on after a resume.
    Only errors of this library's solvers are seen: fixed grids raise none, and what a model of
    your own passes to ``odeint`` itself fails as it did.

    Besides, the guard warns of blocks that are close to failing, once an epoch, and in the first
    training batch of vector fields that are random within a solve. For that a field is evaluated
    twice more before each solve of that batch, without trace in torch's random streams, buffers
    and counts.

    On several processes under DDP a failure on one rank is every rank's failure within the step:
    all raise, or all drop the step, or the rank where it failed solves again while the others
    wait. For this the ranks reduce one number after each training step and one after each
    backward pass, and values are logged a moment later. A failure in validation or test ends the
    run on all ranks once the evaluation is over. With other strategies, manual optimisation, and
    synchronised batch norm ``"raise"`` raises on one rank alone, and the launcher has to end the
    others. What a step of your own reduces over the ranks by itself cannot be helped: log it
    with ``self.log``, in evaluation with ``on_step=False``.

    Args:
        policy: ``"raise"``, ``"skip"`` or ``"fallback"``.
        max_consecutive: Failures in a row, of training batches, at which the run ends even so.
        fallback_steps: Steps of the fixed grid in each interval of times.
        save_batches: Save what a failed batch held to ``failed_batches`` in the run's folder, by
            :func:`torch.save`, with the error's text.
        min_dt: Warn of accepted steps below this, in units of time.
        max_rejected: Warn of a share of rejected steps above this.
        random_fields: What to do on finding a random field: ``"warn"``, ``"raise"`` or
            ``"ignore"``, which does not look.

    Raises:
        ValueError: If a value is out of range or a name unknown; in the first training batch if a
            field is random and ``random_fields="raise"``.
        MisconfigurationException: At the start of ``fit`` if ``policy`` does not go with manual
            optimisation, LBFGS or the strategy, there is no solver to replace, or the training
            step cannot be run again.
        SolverError: If a solve failed, by policy; its subclass ``RepeatedFailureError`` after
            ``max_consecutive`` failures.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> guard = SolverGuard(policy="skip", max_consecutive=5)
        >>> trainer = Trainer(callbacks=[guard], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        policy: Policy = "raise",
        max_consecutive: int = 10,
        fallback_steps: int = 32,
        save_batches: bool = False,
        min_dt: float = 1e-7,
        max_rejected: float = 0.5,
        random_fields: RandomFields = "warn",
    ) -> None:
        check_choice("policy", policy, ("raise", "skip", "fallback"))
        for name, number in (
            ("max_consecutive", max_consecutive),
            ("fallback_steps", fallback_steps),
        ):
            if number < 1:
                raise ValueError(f"Expected `{name}` >= 1, but got {number}.")
        self.policy = policy
        self.max_consecutive = max_consecutive
        self.fallback_steps = fallback_steps
        self.save_batches = save_batches
        self.skipped = 0
        self.fallbacks = 0
        self._steps = StepWatch(min_dt, max_rejected)
        self._fields = FieldCheck(random_fields)
        self._training: GuardedTraining | None = None
        self._evaluation: GuardedEvaluation | None = None
        self._in_hand: _BatchInHand | None = None
        self._failures: list[str] = []  # in a row
        self._warned = False
        self._folder: Path | None = None

    def state_dict(self) -> dict[str, int]:
        """The counts, as plain numbers."""
        return {"skipped": self.skipped, "fallbacks": self.fallbacks}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]
        self.fallbacks = state_dict["fallbacks"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on a folder, which a single rank cannot."""
        self._release()
        self._folder = run_folder(trainer) / "failed_batches" if self.save_batches else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be guarded."""
        if self.policy != "raise":
            refuse_unguardable(trainer, pl_module, self.policy)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the training step."""

        @contextmanager
        def around() -> Iterator[None]:
            self._steps.start()
            with self._fields.watching(pl_module):
                yield

        passes_through = self.policy == "raise" and not can_agree(trainer, pl_module)
        self._failures = []
        self._fields.arm()
        self._steps.start_epoch(pl_module)  # a resume in mid-epoch has no start of its own
        self._training = GuardedTraining(
            trainer,
            pl_module,
            around,
            partial(self._place, trainer, pl_module),
            None if passes_through else self._failed,
            self.fallback_steps if self.policy == "fallback" else None,
            drops=self.policy != "raise",
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn again."""
        self._warned = False
        self._steps.start_epoch(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Know which batch it is."""
        assert self._training is not None
        self._in_hand = _BatchInHand("training", batch_idx, batch)
        self._training.start_batch(batch_idx)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count and log what became of the batch."""
        assert self._training is not None
        self._in_hand = None
        outcome = self._training.outcome
        self._training.end_batch()
        if outcome == "fine":
            self._failures = []
            self._steps.check()
        elif outcome == "skipped":
            self.skipped += 1
        else:
            self.fallbacks += 1
        if self.policy != "raise":
            counts = {f"solver/{name}": float(n) for name, n in self.state_dict().items()}
            pl_module.log_dict(counts, on_step=True, on_epoch=False, batch_size=1)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Know which batch it is."""
        self._in_hand = _BatchInHand("validation", batch_idx, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Know which batch it is."""
        self._in_hand = _BatchInHand("test", batch_idx, batch)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Know which batch it is."""
        self._in_hand = _BatchInHand("predict", batch_idx, batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no rank wait for one that fails."""
        self._evaluate(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no rank wait for one that fails."""
        self._evaluate(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let go of the batch, or end the run on all ranks."""
        self._evaluated(batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let go of the batch, or end the run on all ranks."""
        self._evaluated(batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run on all ranks if one failed."""
        if self._evaluation is not None:
            self._evaluation.end()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run on all ranks if one failed."""
        if self._evaluation is not None:
            self._evaluation.end()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the module's own step back."""
        self._release_evaluation()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the module's own step back."""
        self._release_evaluation()

    def on_predict_batch_end(self, *_: Any) -> None:
        """Let go of the batch."""
        self._in_hand = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say where it was; Lightning raises this same exception afterwards."""
        if isinstance(exception, SolverError):
            self._place(trainer, pl_module, exception)
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as it was found."""
        self._release()

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Evaluation alone does not wrap the model, so that the strategy has to say what it is.
        is_ddp = any(base.__name__ == "DDPStrategy" for base in type(trainer.strategy).__mro__)
        if trainer.world_size > 1 and is_ddp:
            place = partial(self._place, trainer, pl_module)
            self._evaluation = GuardedEvaluation(trainer, pl_module, place)

    def _evaluated(self, batch_idx: int, dataloader_idx: int) -> None:
        self._in_hand = None
        if self._evaluation is not None:
            self._evaluation.end_batch(batch_idx, dataloader_idx)

    def _release_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.release()
            self._evaluation = None

    def _failed(self, error: SolverError) -> None:
        """A training batch failed: one more in a row."""
        if self.policy == "raise":
            raise error
        self._failures.append(str(error))
        if len(self._failures) >= self.max_consecutive:
            raise RepeatedFailureError(
                len(self._failures), self._failures[0], self._failures[-1]
            ) from error
        if not self._warned:
            self._warned = True
            done = "dropped"
            if self.policy == "fallback":
                done = "solved again on a fixed grid, or dropped if that fails too"
            rank_zero_warn(
                f"SolverGuard: a batch is {done}, and so are others that fail in this epoch; they "
                f"are counted but not named. {error}"
            )

    def _place(self, trainer: Trainer, pl_module: LightningModule, error: SolverError) -> None:
        """Add to an error what only the Trainer knows, and save the batch, where it failed."""
        if error.rank is not None or isinstance(error, RepeatedFailureError):
            return
        error.with_context(block=_path_of(pl_module, error.stats), rank=trainer.global_rank)
        if self._in_hand is None:
            return
        stage, batch_idx, batch = self._in_hand
        error.with_context(stage=stage, epoch=trainer.current_epoch, batch_idx=batch_idx)
        if trainer.world_size > 1 and (self.policy == "raise" or stage != "training"):
            # At once, should something else keep the ranks from hearing of it.
            sys.stderr.write(f"[rank {error.rank}] {type(error).__name__}: {error}\n")
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{stage}_epoch{error.epoch}_batch{batch_idx}_rank{error.rank}.pt"
            if not (self._folder / name).exists():
                torch.save({"batch": batch, "error": str(error)}, self._folder / name)

    def _release(self) -> None:
        if self._training is not None:
            self._training.release()
            self._training = None
        self._release_evaluation()
        self._in_hand = None


class _BatchInHand(NamedTuple):
    stage: str
    batch_idx: int
    batch: Any


def _path_of(model: nn.Module, stats: object) -> str | None:
    """Path of the block that counts in ``stats``."""
    return next((path for path, own in find_stats(model).items() if own is stats), None)
