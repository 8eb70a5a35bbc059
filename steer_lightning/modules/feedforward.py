"""Base class of classification and regression: an input, a block, a head, a target."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from steer_lightning.horizon import SpanHorizon
from steer_lightning.modules.base import TaskModule, mean_with_nan


class FeedforwardModule(TaskModule):
    """Base of the tasks that predict from the solution of an ODE that starts at the input.

    A batch is a tuple of inputs ``(B, ...)`` and targets. The stem makes the ODE's initial state
    of an input; the block's solution, the features, is flattened for the head.
    """

    def __init__(
        self, block: nn.Module, head: nn.Module, stem: nn.Module | None = None, **optimization: Any
    ) -> None:
        super().__init__(**optimization)
        self.stem = nn.Identity() if stem is None else stem
        self.block = block
        self.head = head

    def add_metrics(self, metrics: Mapping[str, Metric]) -> None:
        # The loss too: Lightning's own mean is wrong over ranks whose batches differ in number.
        super().add_metrics({"loss": mean_with_nan(), **metrics})

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a ``ValueError`` unless outputs and targets of a batch fit each other."""
        raise NotImplementedError

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Means over a batch, ``"loss"`` among them; metrics of these names are their means."""
        raise NotImplementedError

    def prediction(self, outputs: Tensor) -> Tensor:
        """Predictions, as metrics compare them with targets, from the head's outputs."""
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """The head's outputs for inputs ``(B, ...)``."""
        return self.head(self.block(self.initial_state(x)).flatten(1))

    def initial_state(self, x: Tensor) -> Tensor:
        """What the stem makes of inputs; what autocast lowers is float32 again, for the solver."""
        y: Tensor = self.stem(x)
        device = y.device.type
        lowered = torch.is_autocast_enabled(device) and y.dtype == torch.get_autocast_dtype(device)
        return y.float() if lowered else y

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
        start = float(t_eval[0])
        for t0 in (m.t0 for m in self.block.modules() if isinstance(m, SpanHorizon)):
            if not math.isclose(start, t0, rel_tol=1e-6, abs_tol=1e-6):
                raise ValueError(
                    f"Expected `t_eval` to start where the block does, at {t0:g}, but got "
                    f"{start:g}."
                )
        return self.block(self.initial_state(x), t_eval)

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        x, targets = batch
        outputs = self(x)
        self.check(outputs, targets)
        return self.scores(outputs, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self.evaluate(batch)
        self.log_dict({f"train/{k}": v for k, v in scores.items()}, prog_bar=True)
        return scores["loss"]

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.prediction(self(batch[0] if isinstance(batch, (tuple, list)) else batch))

    def evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        x, targets = batch
        outputs = self(x)
        self.check(outputs, targets)
        scores, predicted = self.scores(outputs, targets), self.prediction(outputs)
        for name in map(str, self.stage_metrics(stage).keys(keep_base=True)):
            values = (scores[name], len(targets)) if name in scores else (predicted, targets)
            self.update_metric(stage, name, *values, prog_bar=name != "loss")
