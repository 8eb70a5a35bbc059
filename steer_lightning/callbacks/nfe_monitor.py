"""How hard the solvers work, logged."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from steer_lightning.solvers import SolveStats
from steer_lightning.steering.targets import as_paths, find_stats
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.checks import check_choice


class NFEMonitor(Callback):
    """Log the number of function evaluations, in all and for each block.

    In training ``train/nfe_forward`` and ``train/nfe_backward`` are those of the batch, and with
    ``_epoch`` after these names the means over the batches of the epoch; in evaluation
    ``val/nfe_forward`` and ``test/nfe_forward`` are means over the batches, those of all ranks.
    Models with several blocks have ``train/nfe_forward/<path>`` besides. What is logged for a
    training batch is that of the first rank.

    Args:
        vector_fields: Dotted paths of vector fields of a foreign model, whose calls are counted;
            the blocks of this library (whatever has ``stats``) if not given.
        steps: Log accepted and rejected steps too, of this library's blocks.

    Raises:
        ValueError: If ``vector_fields`` is a string; at the start of a run, if there is nothing
            to count or a path leads nowhere.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[NFEMonitor()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, vector_fields: Sequence[str] | None = None, steps: bool = False) -> None:
        self.vector_fields = as_paths("vector_fields", vector_fields)
        self.steps = steps
        self._stats: dict[str, SolveStats] = {}
        self._handles: list[Any] = []
        self._totals: dict[str, int] = {}
        self._batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is known of the model before ``configure_model``; see :meth:`_find`."""
        self._release()

    def _find(self, model: nn.Module) -> None:
        if self._stats:
            return
        if self.vector_fields is None:
            self._stats = find_stats(model)
        else:
            known = dict(model.named_modules(remove_duplicate=False))
            for path in self.vector_fields:
                check_choice("vector_fields", path, known)
                self._stats[path] = stats = SolveStats()
                self._handles.append(known[path].register_forward_hook(_CountCall(stats)))
        if not self._stats:
            raise ValueError(
                f"Expected a model with blocks of steer_lightning.nn, but "
                f"{type(model).__name__} has none, so there is nothing to count. Name the modules "
                f"that it passes to odeint: NFEMonitor(vector_fields=['flow.func'])."
            )

    def _start(self, model: nn.Module) -> None:
        self._find(model)
        for stats in self._stats.values():
            stats.reset()

    def _counts(self, stage: str, names: Sequence[str]) -> dict[str, int]:
        """Counts since the start of the batch, by the names they are logged under."""
        found = {}
        for name in names:
            counts = {path: getattr(stats, name) for path, stats in self._stats.items()}
            found[f"{stage}/{name}"] = sum(counts.values())
            if len(counts) > 1:
                found |= {f"{stage}/{name}/{path}": n for path, n in counts.items()}
        return found

    def _start_evaluation(self) -> None:
        self._totals = {}
        self._batches = 0

    def _add(self, stage: str) -> None:
        for name, count in self._counts(stage, self._names("nfe_forward")).items():
            self._totals[name] = self._totals.get(name, 0) + count
        self._batches += 1

    def _log_means(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log means over the batches of all ranks, which may have different numbers of them.

        Batches count alike, whatever their size.
        """
        sums = torch.tensor([*self._totals.values(), self._batches], device=pl_module.device)
        reduced = trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(reduced, torch.Tensor)
        *totals, n = reduced.tolist()
        means = {name: total / n for name, total in zip(self._totals, totals, strict=True)}
        pl_module.log_dict(means, sync_dist=True)

    def _names(self, *names: str) -> list[str]:
        return [*names, *(("accepted", "rejected") if self.steps else ())]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count from zero."""
        self._start(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the batch's counts, its backward pass included."""
        counts = self._counts("train", self._names("nfe_forward", "nfe_backward"))
        pl_module.log_dict({name: float(n) for name, n in counts.items()})
        for name in ("nfe_forward", "nfe_backward"):
            total = float(sum(getattr(stats, name) for stats in self._stats.values()))
            pl_module.log(
                f"train/{name}_epoch", total,
                on_step=False, on_epoch=True, batch_size=1, sync_dist=True,
            )  # fmt: skip

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation that broke off has left."""
        self._start_evaluation()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Count from zero."""
        self._start(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Add the batch's counts."""
        self._add("val")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means."""
        self._log_means(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation that broke off has left."""
        self._start_evaluation()

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count from zero."""
        self._start(pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add the batch's counts."""
        self._add("test")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means."""
        self._log_means(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take hooks off."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take hooks off."""
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stats = {}


class _CountCall:
    """Forward hook that counts; an object, so that a model with hooks can be pickled."""

    def __init__(self, stats: SolveStats) -> None:
        self.stats = stats

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stats.count_evaluation("backward" if in_backward() else "forward")
