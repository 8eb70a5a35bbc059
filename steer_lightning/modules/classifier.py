"""Classification with Neural ODEs."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from steer_lightning.modules.base import (
    LRInterval,
    OptimizerFactory,
    SchedulerFactory,
    StageMetrics,
    TaskModule,
    adam,
)
from steer_lightning.nn import ODEBlock


class ClassifierModule(TaskModule):
    r"""Classify the solution of an ODE that starts at the input.

    A batch is a tuple of inputs ``(B, ...)`` and labels ``(B,)``. The stem makes the ODE's initial
    state of an input; the block's solution is flattened for the head. ``predict`` gives class
    probabilities ``(B, num_classes)``.

    Args:
        block: Maps initial states to features of the same shape.
        head: Maps flattened features to ``num_classes`` logits.
        num_classes: Number of classes.
        stem: Maps inputs to initial states; the identity if not given.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimiser.
        lr_interval: What the schedule counts, ``"epoch"`` or ``"step"``.

    References:
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681; Ghosh et al.,
        *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.3.

    Example:
        >>> import torch
        >>> from steer_lightning.nn import ConvField, ODEBlock
        >>> module = ClassifierModule(ODEBlock(ConvField(1, 8)), nn.Linear(16, 10))
        >>> module(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: ODEBlock,
        head: nn.Module,
        num_classes: int = 10,
        stem: nn.Module | None = None,
        optimizer: OptimizerFactory = adam,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: LRInterval = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        self.save_plain_hyperparameters()
        self.stem = nn.Identity() if stem is None else stem
        self.block = block
        self.head = head
        self.num_classes = num_classes
        self.accuracy = StageMetrics(
            lambda: MulticlassAccuracy(num_classes=num_classes, average="micro")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(B, num_classes)``."""
        logits: Tensor = self.head(self.block(self.stem(x)).flatten(1))
        return logits

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Mean cross-entropy in nats and accuracy of a batch."""
        x, labels = batch
        logits = self(x)
        return {
            "loss": F.cross_entropy(logits, labels),
            "accuracy": multiclass_accuracy(logits, labels, self.num_classes, average="micro"),
        }

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the batch."""
        metrics = self.evaluate(batch)
        self.log_dict({f"train/{k}": v for k, v in metrics.items()}, prog_bar=True)
        return metrics["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add to ``val/loss`` and ``val/accuracy``."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add to ``test/loss`` and ``test/accuracy``."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities of the batch."""
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        logits: Tensor = self(x)
        return logits.softmax(1)

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        x, labels = batch
        logits = self(x)
        metric = self.accuracy[stage]
        metric.update(logits, labels)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}/accuracy", metric, prog_bar=True)
