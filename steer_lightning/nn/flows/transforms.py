"""The map from images in the unit cube to all of space."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Logit:
    r"""Logit of data in the unit cube, with its log-determinant.

    .. math:: y = \operatorname{logit}(\alpha + (1 - 2 \alpha)\, x)

    Args:
        alpha: Keeps values away from 0 and 1, in ``[0, 0.5)``; with 0 the ends are infinite.

    Raises:
        ValueError: If ``alpha`` is outside ``[0, 0.5)``.

    References:
        Dinh et al., *Density estimation using Real NVP*, ICLR 2017, Section 4.1.
    """

    def __init__(self, alpha: float = 1e-5) -> None:
        if not 0.0 <= alpha < 0.5:
            raise ValueError(
                f"Expected `alpha` in [0, 0.5), but got {alpha}. Common are 1e-5 for MNIST and "
                f"0.05 for natural images."
            )
        self.alpha = alpha

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image of ``x`` of shape ``(B, ...)``, and the log-determinant, shape ``(B,)``."""
        s = self.alpha + (1.0 - 2.0 * self.alpha) * x
        y = torch.log(s) - torch.log1p(-s)
        # dy/dx = (1 - 2 alpha) / (s (1 - s)), and s (1 - s) = sigmoid(y) sigmoid(-y)
        log_slope = F.softplus(y) + F.softplus(-y) + math.log1p(-2.0 * self.alpha)
        return y, log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """The point whose image is ``y``; outside ``[0, 1]`` where ``y`` is no image."""
        return (torch.sigmoid(y) - self.alpha) / (1.0 - 2.0 * self.alpha)
