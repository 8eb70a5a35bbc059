"""Log-densities and what is made of them."""

import math

from torch import Tensor


def standard_normal_log_prob(z: Tensor) -> Tensor:
    r"""Log-density of :math:`\mathcal{N}(0, I)`.

    Args:
        z: Points, shape ``(B, ...)``.

    Returns:
        Log-density in nats, shape ``(B,)``.

    Example:
        >>> import torch
        >>> standard_normal_log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """
    flat = z.reshape(len(z), -1)
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2.0 * math.pi)
