"""Base class of the tasks."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.core.mixins.hparams_mixin import (
    HyperparametersMixin,
    _given_hyperparameters,
)
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.model_helpers import _restricted_classmethod
from pytorch_lightning.utilities.parsing import collect_init_args
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection

from steer_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from steer_lightning.callbacks.step_memories import StepMemories, find_step_memories
from steer_lightning.modules.compatibility import check_same_network, warn_of_changes
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.io import check_whole
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.plain import as_plain, is_plain


def mean_with_nan() -> MeanMetric:
    """A mean that is NaN if one of its values is, where torchmetrics leaves that out."""
    return MeanMetric(nan_strategy=math.nan)


def correct(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 where the largest score ``(..., C)`` is the label's ``(...)``, else 0; NaN if one is NaN.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [torch.nan, 0.0]])
        >>> correct(scores, torch.tensor([1, 1, 0]))
        tensor([1., 0., nan])
    """
    right = (scores.argmax(-1) == labels).float()
    return right.where(scores.isfinite().all(-1), torch.nan)


class TaskModule(LightningModule):
    """Base of the tasks.

    Subclasses pass the arguments of this class on, give the metrics of one batch in
    :meth:`evaluate` and update those of validation and test in :meth:`evaluation_step`. Several
    ranks average their gradients. A loss that is a mean over the samples of a batch is then one
    over those of all ranks; where it is a mean over something else, see :meth:`loss_weight`.

    All arguments of the constructors are saved in checkpoints, as plain values only. Under
    LightningCLI they are the config, from which ``load_from_checkpoint`` builds the model again.
    A model built in Python saves its plain arguments; give the objects to
    ``load_from_checkpoint`` as you gave them to the constructor.

    Args:
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimiser. One that looks at a
            metric names it, as ``pytorch_lightning.cli.ReduceLROnPlateau`` does.
        lr_interval: What the schedule counts, ``"epoch"`` or ``"step"``.

    Attributes:
        lr: Learning rate to use in place of the optimiser's own, as Lightning's learning-rate
            finder sets it; ``None`` for the optimiser's own.

    Raises:
        ValueError: If ``lr_interval`` is unknown.
    """

    flops_per_batch = None  # asked for by Lightning's ThroughputMonitor
    lr: float | None = None
    rank_share: torch.Tensor | None = None
    _loader = 0  # of the batch in hand, of several in an evaluation

    def __init__(
        self,
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        check_choice("lr_interval", lr_interval, ("epoch", "step"))
        frame: Any = inspect.currentframe()
        if _given_hyperparameters.get() is not None:  # LightningCLI's config, which is plain
            self.save_hyperparameters(frame=frame)
        else:
            *inner, outer = collect_init_args(frame, [], classes=(HyperparametersMixin,))
            every = {name: value for given in (*inner, outer) for name, value in given.items()}
            arguments = inspect.signature(type(self).__init__).parameters.values()
            # Not what a subclass sets itself; but of `*args` Lightning tells the parent's names.
            named = every if any(a.kind is a.VAR_POSITIONAL for a in arguments) else outer
            kept = {name for name in named if is_plain(every[name])}
            # Modules are left out before anything is copied, which some refuse.
            self.save_hyperparameters(ignore=[*(every.keys() - kept)], frame=frame)
            self.hparams.update({k: as_plain(v) for k, v in self.hparams.items()})
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._lr_interval = lr_interval
        self._configured_lr: float | None = None
        self._group_names: list[set[str]] = []  # of each optimiser as it was made
        self._loading: Mapping[str, Any] | None = None

    @_restricted_classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **settings: Any) -> Any:
        """As Lightning's, of a file whose checksums are right; others are a ``BadZipFile``."""
        if isinstance(checkpoint_path, str | Path) and Path(checkpoint_path).is_file():
            check_whole(Path(checkpoint_path))
        return super().load_from_checkpoint(checkpoint_path, *args, **settings)

    @property
    def _goes_on(self) -> bool:
        """Whether counts of a checkpoint go on, as they do not in a test of it."""
        return self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        self._group_names = []  # of another fit, before a search for a learning rate
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()  # compares checksums

    def evaluate(self, batch: Any) -> dict[str, torch.Tensor]:
        """Metrics of one batch as means over its samples, the loss among them as ``"loss"``."""
        raise NotImplementedError

    def evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        """Add a batch to the metrics of ``"val"`` or ``"test"``."""
        raise NotImplementedError

    def check_batch(self, batch: Any) -> None:
        """Raise if a batch does not fit the model; asked of the first one of each epoch."""

    def loss_weight(self, batch: Any) -> torch.Tensor | None:
        """Divisor of the loss of a batch, if that is not its number of samples.

        With several ranks ``training_step`` has to multiply by ``rank_share``, this weight
        relative to the mean over the ranks: the gradient is then that of the joined batch.
        """
        return None

    def add_metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Hold metrics for validation and test, to be updated by :meth:`update_metric`."""
        collection = MetricCollection(dict(metrics), compute_groups=False)
        self.metrics = nn.ModuleDict(
            {stage: collection.clone(prefix=f"{stage}/") for stage in ("val", "test")}
        )

    def stage_metrics(self, stage: str) -> MetricCollection:
        """The metrics of ``"val"`` or ``"test"``."""
        return cast(MetricCollection, self.metrics[stage])

    def update_metric(self, stage: str, name: str, *values: Any, **log: Any) -> None:
        """Update a metric of validation or test, and log it."""
        if self._loader:
            raise ValueError(
                "Expected one loader, as each metric of this module is one over all batches, but "
                "got several. Validate or test on them one after the other."
            )
        metric = self.stage_metrics(stage)[name]
        metric.update(*values)
        self.log(f"{stage}/{name}", metric, **log)

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that broke off has left."""
        for metrics in getattr(self, "metrics", {}).values():
            metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step("test", batch, batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.check_batch(batch)
        # Here and not in the training step, which may fail on one rank.
        self.rank_share = None
        weight = self.loss_weight(batch) if self.trainer.world_size > 1 else None
        if weight is not None:
            weight = weight.detach().double()
            mean = self.trainer.strategy.reduce(weight.clone(), reduce_op="mean")
            assert isinstance(mean, torch.Tensor)
            self.rank_share = weight / mean.clamp(min=torch.finfo(mean.dtype).tiny)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._loader = dataloader_idx
        if batch_idx == 0:
            self.check_batch(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        self._configured_lr = self.lr
        if self.lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = self.lr
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        schedule = {
            "scheduler": scheduler,
            "interval": self._lr_interval,
            "monitor": getattr(scheduler, "monitor", None),  # as Lightning's plateau has
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        if self.lr != self._configured_lr:  # by a learning-rate finder among the callbacks
            self.trainer.strategy.setup_optimizers(self.trainer)
        self._group_names = [  # before those of a checkpoint are loaded
            {*getattr(optimizer, "defaults", ())} & {*optimizer.param_groups[0]}
            for optimizer in self.trainer.optimizers
        ]

    def on_train_start(self) -> None:
        """Refuse what would fail or end soon; asked when checkpoint and loaders are loaded."""
        for optimizer, names in zip(self.trainer.optimizers, self._group_names, strict=False):
            missing = sorted(names - {*optimizer.param_groups[0]})
            if missing:
                raise ValueError(
                    f"Expected a checkpoint of a training by {type(optimizer).__name__}, but its "
                    f"optimiser has no {', '.join(missing)}. Go on with the optimiser that it was "
                    f"trained with."
                )
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(is_lightning(c, "callbacks", "GradientAccumulationScheduler") for c in callbacks):
            return  # nobody knows how many steps there are
        for config in self.trainer.lr_scheduler_configs:
            ends = getattr(config.scheduler, "total_steps", None)
            if ends is None or config.interval != "step" or config.frequency != 1:
                continue
            steps = self.trainer.estimated_stepping_batches
            if math.isfinite(steps) and steps > ends:
                raise ValueError(
                    f"Expected a schedule of as many steps as the training has, {steps:,}, but "
                    f"{type(config.scheduler).__name__} has total_steps={ends} (in a resumed run "
                    f"the checkpoint's), and would end the training there. Give it "
                    f"total_steps={steps} from the start, or train for no more steps."
                )

    def configure_callbacks(self) -> list[Callback]:
        return [StepMemories()] if find_step_memories(self) else []

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler.get_scale()  # a fused optimiser takes them scaled
        self.log("train/grad_norm", norm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loading = checkpoint

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; those of a checkpoint have to be of the same network.

        A training that goes on with another config than it began with is warned of.

        Raises:
            ValueError: If names or shapes of a checkpoint's weights differ and ``strict`` is on.
            RuntimeError: If those of another mapping do.
        """
        checkpoint, self._loading = self._loading, None
        if checkpoint is not None and strict:
            check_same_network(self, state_dict, checkpoint)
        if checkpoint is not None and self._trainer is not None and self.trainer.training:
            warn_of_changes("the model", checkpoint.get("hyper_parameters", {}), self.hparams)
        return super().load_state_dict(state_dict, strict, assign)
