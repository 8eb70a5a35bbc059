"""Learning-rate schedules that torch does not have."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class FlooredExponentialLR(LRScheduler):
    r"""Exponential decay that ends at a floor.

    .. math:: \eta_n = \max(\gamma^n \eta_0,\; \eta_{\min})

    Args:
        optimizer: Whose learning rates to set.
        gamma: Factor on the learning rate at each step, in (0, 1].
        min_lr: Where the decay ends; a learning rate that begins below it stays as it is.
        last_epoch: Steps taken before; -1 to begin.

    Raises:
        ValueError: If ``gamma`` or ``min_lr`` is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = FlooredExponentialLR(optimizer, gamma=0.5, min_lr=0.3)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.3]
    """

    def __init__(
        self, optimizer: Optimizer, gamma: float, min_lr: float = 0.0, last_epoch: int = -1
    ) -> None:
        if not 0.0 < gamma <= 1.0 or not min_lr >= 0.0:
            raise ValueError(
                f"Expected `gamma` in (0, 1] and `min_lr` >= 0, but got {gamma} and {min_lr}."
            )
        self.gamma = gamma
        self.min_lr = min_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | object]:  # type: ignore[override]
        """Learning rate of each parameter group."""
        return [
            max(lr * self.gamma**self.last_epoch, min(lr, self.min_lr)) for lr in self.base_lrs
        ]
