"""Features scaled by the range of what is seen of them."""

from typing import Literal

import torch
from torch import Tensor

NormaliseBy = Literal["train", "all", "released"]


def min_max(values: Tensor, seen: Tensor, train: Tensor, by: NormaliseBy) -> Tensor:
    r"""Scale each feature by its smallest and largest seen value.

    .. math:: x' = \frac{x - \min}{\max - \min}
        \qquad\text{or, as released,}\qquad x' = \frac{x - \min}{\max}

    A feature that no training sample has takes its range from all samples; one of a single value
    becomes zero.

    Args:
        values: Values, shape ``(N, T, D)``, floating.
        seen: True where there is a value, shape ``(N, T, D)``, bool.
        train: Indices of the training samples.
        by: Whose range: that of the training samples, or that of all; ``"released"`` divides by
            the maximum of all, as the public code of latent ODEs does.

    Returns:
        Scaled values, zero where nothing is seen.
    """
    low, high = _range(values, seen)
    if by == "train":
        train_low, train_high = _range(values[train], seen[train])
        known = train_low <= train_high
        low, high = torch.where(known, train_low, low), torch.where(known, train_high, high)
    divisor = high if by == "released" else high - low
    divisor = torch.where(divisor == 0, 1.0, divisor)
    return torch.where(seen, (values - low) / divisor, 0.0)


def _range(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each feature; infinite and reversed if it has none."""
    low = torch.where(seen, values, torch.inf).amin((0, 1))
    return low, torch.where(seen, values, -torch.inf).amax((0, 1))
