"""The callback that guards a run against solves that fail."""

import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.callbacks.run_state import RunState
from steer_lightning.guard.agreement import can_agree, is_ddp
from steer_lightning.guard.evaluation import GuardedEvaluation
from steer_lightning.guard.health import RandomFields, StepWatch, look_at_fields
from steer_lightning.guard.search import guard_search
from steer_lightning.guard.training import GuardedTraining, refuse_undroppable
from steer_lightning.solvers import NonFiniteStateError, RepeatedFailureError, SolverError
from steer_lightning.solvers.foreign import as_solver_error
from steer_lightning.steering.targets import find_stats
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.patching import WrappedMethods

STAGES: Final = {"train": "training", "validate": "validation", "sanity_check": "validation"}


class SolverGuard(RunState):
    r"""Name block, batch and rank in a solver's errors; drop the batches that fail, if asked.

    Every :class:`~steer_lightning.solvers.SolverError` gets the path of its block, stage, epoch,
    batch and rank. In validation, test and prediction it always ends the run. In training:

    - ``"raise"`` ends the run there too;
    - ``"skip"`` drops the batch, whether the forward solve failed or the adjoint's: weights,
      optimiser, schedules that count steps, buffers (running statistics) and
      ``trainer.global_step`` stay as they were, and ``solver/skipped`` is logged. With gradient
      accumulation all batches that were accumulated for the step are dropped with it.

    Seen are errors of this library's solvers and of torchdiffeq's, torchdyn's, torchode's and
    zuko's, whose adjoint's failures end the run under DDP; fixed grids raise none. A failure on
    one rank is every rank's failure within the step. ``docs/reliability.md`` has the details, and
    what other strategies, manual optimisation and synchronised batch norm allow.

    A solve that fails in Lightning's search for a learning rate ends the search, not the run.

    Besides, the guard warns of blocks that are close to failing, once an epoch, and in the first
    training batch of vector fields that are random within a solve, by two more evaluations
    before each solve of that batch.

    Args:
        policy: ``"raise"`` or ``"skip"``.
        max_consecutive: Failures of training batches, with no step of the optimiser between them,
            at which the run ends even so.
        save_batches: Save what a failed batch held to ``failed_batches`` in the run's folder, by
            :func:`torch.save`, with the error's text. Batches that are named tuples are read by
            ``torch.load(path, weights_only=False)``.
        min_dt: Warn of accepted steps below this, in units of time.
        max_rejected: Warn of a share of rejected steps above this.
        random_fields: What to do on finding a random field: ``"warn"``, ``"raise"`` or
            ``"ignore"``, which does not look.

    Raises:
        ValueError: If a value is out of range or a name unknown; in the first training batch if a
            field is random and ``random_fields="raise"``.
        MisconfigurationException: At the start of ``fit`` if ``policy="skip"`` does not go with
            manual optimisation, LBFGS or the strategy.
        SolverError: If a solve failed, by policy; its subclass ``RepeatedFailureError`` after
            ``max_consecutive`` failures.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> guard = SolverGuard(policy="skip", max_consecutive=5)
        >>> trainer = Trainer(callbacks=[guard], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        policy: Literal["raise", "skip"] = "raise",
        max_consecutive: int = 10,
        save_batches: bool = False,
        min_dt: float = 1e-7,
        max_rejected: float = 0.5,
        random_fields: RandomFields = "warn",
    ) -> None:
        check_choice("policy", policy, ("raise", "skip"))
        check_choice("random_fields", random_fields, ("warn", "raise", "ignore"))
        if max_consecutive < 1:
            raise ValueError(f"Expected `max_consecutive` >= 1, but got {max_consecutive}.")
        self.policy = policy
        self.max_consecutive = max_consecutive
        self.save_batches = save_batches
        self.random_fields = random_fields
        self.skipped = 0
        self._steps = StepWatch(min_dt, max_rejected)
        self._training: GuardedTraining | None = None
        self._evaluation: GuardedEvaluation | None = None
        self._search: WrappedMethods | None = None
        self._in_hand: tuple[str, int, Any] | None = None  # stage, index and batch
        self._loss: Any = None  # of the training batch before
        self._failures: list[str] = []  # since the optimiser's last step
        self._last_step = 0
        self._warned = False
        self._folder: Path | None = None

    min_dt = property(attrgetter("_steps.min_dt"))
    max_rejected = property(attrgetter("_steps.max_rejected"))

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def go_on(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]

    def start_anew(self) -> None:
        self.skipped = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._release()
        if stage == "fit":
            self._search = guard_search(trainer, pl_module)
        # All ranks take part in finding the folder, so it cannot wait for one that fails.
        folder = run_folder(trainer) / "failed_batches"
        self._folder = folder if self.save_batches and leaves_files(trainer) else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._search is not None:
            self._search.release()
        if self.policy == "skip":
            refuse_undroppable(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        looks = iter([look_at_fields(pl_module, self.random_fields)])  # at the first batch alone

        @contextmanager
        def around() -> Iterator[None]:
            self._steps.start()
            with next(looks, nullcontext()):
                yield

        skips = self.policy == "skip"
        self._failures, self._last_step = [], trainer.global_step
        self._steps.start_epoch(pl_module)  # a resume in mid-epoch has no start of its own
        self._training = GuardedTraining(
            trainer,
            pl_module,
            around,
            partial(self._place, trainer, pl_module),
            self._failed if skips or can_agree(trainer, pl_module) else None,
            drops=skips,
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned = False
        self._steps.start_epoch(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._training is not None
        self._take(trainer, pl_module, batch, batch_idx)
        self._training.start_batch(batch_idx)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self._training is not None
        if outputs is None:  # the loader gave none: no batch has begun
            return
        self._in_hand = None
        self._loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._training.end_batch()
        if self._training.batch_failed:
            self.skipped += 1
        else:
            self._steps.check()
        if trainer.global_step > self._last_step:  # nor is a good batch of a dropped window one
            self._failures = []
        self._last_step = trainer.global_step
        if self.policy == "skip":
            skipped = float(self.skipped)
            pl_module.log("solver/skipped", skipped, on_step=True, on_epoch=False, batch_size=1)

    def _take(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Know which batch is in hand."""
        stage = str(trainer.state.stage.value)  # type: ignore[union-attr]
        self._in_hand = STAGES.get(stage, stage), batch_idx, batch

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _take

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and is_ddp(trainer.strategy):
            place = partial(self._place, trainer, pl_module)
            self._evaluation = GuardedEvaluation(trainer, pl_module, place)

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._in_hand = None
        if self._evaluation is not None:
            self._evaluation.end_batch(batch_idx, dataloader_idx)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluation is not None:
            self._evaluation.end()

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluation is not None:
            self._evaluation.release()
            self._evaluation = None

    on_test_end = on_validation_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        failure = None
        if isinstance(exception, Exception):
            frames = traceback.walk_tb(exception.__traceback__)
            backward = any(frame.f_code.co_name == "backward" for frame, _ in frames)
            failure = as_solver_error(exception, "backward" if backward else "forward")
        if failure is not None:
            self._place(trainer, pl_module, failure)
            if failure is not exception:  # which Lightning raises afterwards
                rank_zero_warn(str(failure))
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

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
            rank_zero_warn(
                f"SolverGuard: a batch is dropped, and so are others that fail in this epoch; "
                f"they are counted but not named. {error}"
            )

    def _place(self, trainer: Trainer, pl_module: LightningModule, error: SolverError) -> None:
        """Add to an error what only the Trainer knows, and save the batch, where it failed."""
        if error.rank is not None or isinstance(error, RepeatedFailureError):
            return
        blocks = (path for path, own in find_stats(pl_module).items() if own is error.stats)
        error.with_context(block=next(blocks, None), rank=trainer.global_rank)
        if self._in_hand is None:
            return
        stage, batch_idx, batch = self._in_hand
        if isinstance(error, NonFiniteStateError):
            error.with_context(weights=self._broken_weights(pl_module))
        error.with_context(stage=stage, epoch=trainer.current_epoch, batch_idx=batch_idx)
        if trainer.world_size > 1 and (self.policy == "raise" or stage != "training"):
            # At once, should something else keep the ranks from hearing of it.
            sys.stderr.write(f"[rank {error.rank}] {type(error).__name__}: {error}\n")
        if self._folder is not None:
            name = f"{stage}_epoch{error.epoch}_batch{batch_idx}_rank{error.rank}.pt"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                held = move_data_to_device(batch, "cpu")
                torch.save({"batch": held, "error": str(error)}, self._folder / name)
            except Exception as failure:  # a full disk, or a batch that cannot be pickled
                warnings.warn(f"SolverGuard could not save a batch: {failure!r}", stacklevel=2)

    def _broken_weights(self, module: LightningModule) -> str | None:
        """What a solve that meets NaN at its first evaluation has it from, mostly."""
        if all(bool(p.isfinite().all()) for p in module.parameters()):
            return None
        known = isinstance(self._loss, torch.Tensor) and self._loss.numel() == 1
        after = f", after a batch whose loss was {float(self._loss):g}" if known else ""
        return f"weights that are NaN or infinite already{after}"

    def _release(self) -> None:
        self._loss = None
        for guarded in (self._training, self._evaluation, self._search):
            if guarded is not None:
                guarded.release()
        self._training = self._evaluation = self._search = self._in_hand = None
