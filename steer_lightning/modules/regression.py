"""Regression with Neural ODEs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_lightning.modules.base import mean_with_nan
from steer_lightning.modules.feedforward import FeedforwardModule


class RegressionModule(FeedforwardModule):
    r"""Predict numbers from the solution of an ODE that starts at the input.

    A batch is a tuple of inputs ``(B, ...)`` and targets of the shape of the head's outputs,
    ``(B, K)``. The mean squared error is minimised; evaluation logs it as ``loss`` and ``mse``,
    and the mean absolute error as ``mae``. ``predict`` gives the head's outputs.

    Args:
        block: Maps initial states to features.
        head: Maps flattened features to predictions.
        stem: Maps inputs to initial states; the identity if not given.
        **optimization: See :class:`~steer_lightning.modules.base.TaskModule`.

    Raises:
        ValueError: At a batch, if targets and the head's outputs differ in shape.

    References:
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681, Section 4.

    Example:
        >>> from steer_lightning.nn import Augmented, MLPField, ODEBlock
        >>> block = Augmented(ODEBlock(MLPField(2 + 1, (16,))), n_extra=1)
        >>> module = RegressionModule(block, nn.Linear(3, 1))
        >>> sorted(module.evaluate((torch.zeros(4, 2), torch.zeros(4, 1))))
        ['loss', 'mae', 'mse']
    """

    def __init__(
        self, block: nn.Module, head: nn.Module, stem: nn.Module | None = None, **optimization: Any
    ) -> None:
        super().__init__(block, head, stem, **optimization)
        self.add_metrics({"mse": mean_with_nan(), "mae": mean_with_nan()})

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"Expected targets of the shape of the head's outputs, {tuple(outputs.shape)}, "
                f"but got {tuple(targets.shape)}. Change the head's number of outputs, or give "
                f"single numbers an axis of length 1: targets[:, None]."
            )

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        targets = targets.to(outputs.dtype)
        mse = F.mse_loss(outputs, targets)
        return {"loss": mse, "mse": mse, "mae": F.l1_loss(outputs, targets)}
