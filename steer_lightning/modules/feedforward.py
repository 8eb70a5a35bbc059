"""What classification and regression share: an input, a block, a head, a target."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from steer_lightning.horizon import SpanHorizon
from steer_lightning.modules.base import (
    LRInterval,
    OptimizerFactory,
    SchedulerFactory,
    StageMetrics,
    TaskModule,
    adam,
)


class FeedforwardModule(TaskModule):
    """Base of the tasks that predict from the solution of an ODE that starts at the input.

    A batch is a tuple of inputs and targets. The stem makes the ODE's initial state of an input;
    the block's solution, the features, is flattened for the head.

    Args:
        block: Maps initial states to features: an :class:`~steer_lightning.nn.ODEBlock`, an
            :class:`~steer_lightning.nn.Augmented` one, or any other module.
        head: Maps flattened features to outputs.
        stem: Maps inputs to initial states; the identity if not given.
        metrics: Makes each metric of predictions and targets, by the name it is logged under.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimiser.
        lr_interval: What the schedule counts, ``"epoch"`` or ``"step"``.
    """

    def __init__(
        self,
        block: nn.Module,
        head: nn.Module,
        stem: nn.Module | None,
        metrics: Mapping[str, Callable[[], Metric]],
        optimizer: OptimizerFactory = adam,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: LRInterval = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        self.stem = nn.Identity() if stem is None else stem
        self.block = block
        self.head = head
        self.metrics = nn.ModuleDict({name: StageMetrics(make) for name, make in metrics.items()})
        # A metric, because Lightning's own mean over ranks whose batches differ in number is
        # wrong. A loss of NaN stays NaN.
        self.mean_loss = StageMetrics(lambda: MeanMetric(nan_strategy=math.nan))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a ``ValueError`` unless outputs and targets of a batch fit each other."""
        raise NotImplementedError

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Means over a batch, what is minimised among them as ``"loss"``."""
        raise NotImplementedError

    def prediction(self, outputs: Tensor) -> Tensor:
        """What ``predict`` gives and metrics compare with targets, from the head's outputs."""
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """The head's outputs for inputs ``(B, ...)``."""
        outputs: Tensor = self.head(self.block(self.stem(x)).flatten(1))
        return outputs

    def trajectories(self, x: Tensor, t_eval: Tensor) -> Tensor:
        """Follow the features through nominal times.

        Args:
            x: Inputs, shape ``(B, ...)``.
            t_eval: Times, shape ``(T,)``, from the start of the block's span on; they may go
                beyond its end.

        Returns:
            Features, shape ``(T, B, ...)``, not flattened.

        Raises:
            ValueError: If ``t_eval`` does not start where the block does.
        """
        for module in self.block.modules():
            if isinstance(module, SpanHorizon) and not math.isclose(
                float(t_eval[0]), module.t0, rel_tol=1e-6, abs_tol=1e-6
            ):
                raise ValueError(
                    f"Expected `t_eval` to start where the block does, at {module.t0:g}, but got "
                    f"{float(t_eval[0]):g}."
                )
        features: Tensor = self.block(self.stem(x), t_eval)
        return features

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Mean loss and scores of a batch."""
        x, targets = batch
        outputs = self(x)
        self.check(outputs, targets)
        return self.scores(outputs, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of the batch."""
        scores = self.evaluate(batch)
        self.log_dict({f"train/{k}": v for k, v in scores.items()}, prog_bar=True)
        return scores["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add to loss and metrics of the validation."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add to loss and metrics of the test."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predictions for the inputs of the batch."""
        return self.prediction(self(batch[0] if isinstance(batch, (tuple, list)) else batch))

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        x, targets = batch
        outputs = self(x)
        self.check(outputs, targets)
        self.mean_loss[stage].update(self.scores(outputs, targets)["loss"], len(targets))
        self.log(f"{stage}/loss", self.mean_loss[stage])
        predicted = self.prediction(outputs)
        for name, metric in self.metrics.items():
            of_stage = cast(StageMetrics, metric)[stage]
            of_stage.update(predicted, targets)
            self.log(f"{stage}/{name}", of_stage, prog_bar=True)
