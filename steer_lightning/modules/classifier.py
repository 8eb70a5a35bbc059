"""Classification with Neural ODEs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities.data import dim_zero_cat

from steer_lightning.modules.base import correct, mean_with_nan
from steer_lightning.modules.feedforward import FeedforwardModule


class DefinedCalibrationError(MulticlassCalibrationError):
    """Expected gap between confidence and accuracy; NaN if a confidence is."""

    def compute(self) -> Tensor:
        """The gap, or NaN."""
        found: Tensor = super().compute()
        finite = dim_zero_cat(self.confidences).isfinite().all()
        return found.where(finite, torch.nan)


class ClassifierModule(FeedforwardModule):
    r"""Classify the solution of an ODE that starts at the input.

    A batch is a tuple of inputs ``(B, ...)`` and labels ``(B,)``, whole numbers from 0.
    Evaluation logs cross-entropy in nats as ``loss``, ``accuracy`` and ``calibration_error``, the
    expected gap between confidence and accuracy. ``predict`` gives class probabilities
    ``(B, num_classes)``.

    Args:
        block: Maps initial states to features: an :class:`~steer_lightning.nn.ODEBlock`, an
            :class:`~steer_lightning.nn.Augmented` one, or any other module.
        head: Maps flattened features to ``num_classes`` logits.
        num_classes: Number of classes.
        stem: Maps inputs to initial states; the identity if not given.
        **optimization: See :class:`~steer_lightning.modules.base.TaskModule`.

    Raises:
        ValueError: At a batch, if the head gives another number of logits than there are
            classes, or the labels are no whole numbers ``(B,)`` from 0 to ``num_classes - 1``.

    References:
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681; Ghosh et al.,
        *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.3; Guo et al., *On calibration of
        modern neural networks*, ICML 2017.

    Example:
        >>> from steer_lightning.nn import ConvField, ODEBlock
        >>> module = ClassifierModule(ODEBlock(ConvField(1, 8)), nn.Linear(16, 10))
        >>> module(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 10])
        >>> module.trajectories(torch.zeros(2, 1, 4, 4), torch.linspace(0.0, 1.5, 4)).shape
        torch.Size([4, 2, 1, 4, 4])
    """

    def __init__(
        self,
        block: nn.Module,
        head: nn.Module,
        num_classes: int = 10,
        stem: nn.Module | None = None,
        **optimization: Any,
    ) -> None:
        super().__init__(block, head, stem, **optimization)
        self.num_classes = num_classes
        self.add_metrics(
            {
                "accuracy": mean_with_nan(),
                "calibration_error": DefinedCalibrationError(num_classes),
            }
        )

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n, classes = len(outputs), self.num_classes
        if outputs.shape != (n, classes):
            raise ValueError(
                f"Expected num_classes = {classes} logits for each sample, shape {(n, classes)}, "
                f"but the head gave {tuple(outputs.shape)}. Change the head's number of outputs, "
                f"or num_classes."
            )
        if targets.shape != (n,) or targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(
                f"Expected a whole number for each sample as its label, shape ({n},), but got "
                f"{targets.dtype} of shape {tuple(targets.shape)}. Give the number of the class, "
                f"not one number for each class."
            )
        low, high = (int(end) for end in targets.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"Expected labels from 0 to num_classes - 1 = {classes - 1}, but got {low} to "
                f"{high}. Count classes from 0, or raise num_classes."
            )

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        targets = targets.long()
        return {
            "loss": F.cross_entropy(outputs, targets),
            "accuracy": correct(outputs, targets).mean(),
        }

    def prediction(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)
