"""Function evaluations of the solvers, logged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from steer_lightning.callbacks.run_state import left_out
from steer_lightning.solvers import SolveStats
from steer_lightning.steering.targets import as_paths, find_fields, find_stats
from steer_lightning.utils.representation import Shown
from steer_lightning.utils.watching import Watching


class NFEMonitor(Shown, Callback):
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
        ValueError: If ``vector_fields`` is a string or given together with ``steps``; at the
            start of a run, if there is nothing to count or a path leads nowhere.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[NFEMonitor()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, vector_fields: Sequence[str] | None = None, steps: bool = False) -> None:
        self.vector_fields = as_paths("vector_fields", vector_fields)
        if steps and vector_fields is not None:
            raise ValueError(
                "Expected `steps` off where there are `vector_fields`, but got both: calls of a "
                "field are counted, its solver's steps are not seen. Leave one of them out."
            )
        self.steps = steps
        self._stats: dict[str, SolveStats] = {}
        self._handles: list[Any] = []
        self._totals: Counter[str] = Counter()
        self._batches = 0
        self._checked: set[str] = set()  # stages

    def _find(self, model: nn.Module) -> None:
        if self.vector_fields is None:
            self._stats = find_stats(model)
        else:
            for path, field in find_fields(model, self.vector_fields).items():
                self._stats[path] = stats = SolveStats()
                self._handles.append(field.register_forward_hook(_CountCall(stats)))
        if not self._stats:
            raise ValueError(
                f"Expected a model with blocks of steer_lightning.nn, but "
                f"{type(model).__name__} has none, so there is nothing to count. Name the modules "
                f"that it passes to odeint: NFEMonitor(vector_fields=['flow.func'])."
            )

    def _check_called(self, stage: str) -> None:
        """Warn of fields that the first batch of a stage has not called."""
        unseen = [path for path, stats in self._stats.items() if not stats.nfe_forward]
        if self.vector_fields and unseen and stage not in self._checked:
            rank_zero_warn(
                f"The vector fields {unseen} were not called in the first {stage} batch, and "
                f"their evaluations are logged as 0. Name the modules that are passed to odeint; "
                f"field.forward(t, y) goes past what counts them."
            )
        self._checked.add(stage)

    def _counts(self, stage: str, *names: str) -> dict[str, int]:
        found = {}
        for name in (*names, *(("accepted", "rejected") if self.steps else ())):
            counts = {path: getattr(stats, name) for path, stats in self._stats.items()}
            found[f"{stage}/{name}"] = sum(counts.values())
            if len(counts) > 1:
                found |= {f"{stage}/{name}/{path}": n for path, n in counts.items()}
        return found

    def _evaluation_counts(self, trainer: Trainer) -> dict[str, int]:
        return self._counts("test" if trainer.testing else "val", "nfe_forward")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if not self._stats:
            self._find(pl_module)
        for stats in self._stats.values():
            stats.reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if outputs is None:  # the loader gave none: no batch has begun
            return
        if not left_out(pl_module, outputs):
            self._check_called("training")
        counts = self._counts("train", "nfe_forward", "nfe_backward")
        pl_module.log_dict(counts)
        totals = {f"{k}_epoch": counts[k] for k in ("train/nfe_forward", "train/nfe_backward")}
        pl_module.log_dict(totals, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._stats:
            self._find(pl_module)
        # All names, as a rank may see no batch.
        self._totals = Counter(dict.fromkeys(self._evaluation_counts(trainer), 0))
        self._batches = 0

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._check_called("test" if trainer.testing else "validation")
        self._totals.update(self._evaluation_counts(trainer))
        self._batches += 1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All batches of all ranks, which may have different numbers of them, count alike.
        sums = torch.tensor([*self._totals.values(), self._batches], device=pl_module.device)
        reduced = trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(reduced, torch.Tensor)
        *totals, n = reduced.tolist()
        means = {name: t / n for name, t in zip(self._totals, totals, strict=True) if n}
        pl_module.log_dict(means, sync_dist=True)

    on_validation_batch_start = on_test_batch_start = on_train_batch_start
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _release(self, *_: Any, **__: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stats = {}
        self._checked = set()

    setup = on_exception = teardown = _release


@dataclass
class _CountCall(Watching):
    """Forward hook that counts."""

    stats: SolveStats

    def __call__(self, *_: Any) -> None:
        if self.watching:
            self.stats.count("nfe")
