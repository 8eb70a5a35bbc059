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


def dequantize(grey: Tensor, u: Tensor | float) -> Tensor:
    r"""Spread 256 grey values over the unit interval: :math:`x = (g + u) / 256`.

    Args:
        grey: Whole numbers 0 to 255, floating, any shape.
        u: Place within a value's bin, in ``[0, 1)``: uniform noise of the shape of ``grey``, or
            ``0.5`` for the bin's centre.

    Returns:
        Values in ``[0, 1]``, shape of ``grey``.

    Example:
        >>> import torch
        >>> dequantize(torch.tensor([0.0, 255.0]), 0.5)
        tensor([0.0020, 0.9980])
    """
    return (grey + u) / 256.0


def bits_per_dim(log_p: Tensor, n_dims: int) -> Tensor:
    r"""Bits per dimension of images of 256 grey values, of a density on the unit cube.

    .. math:: -\frac{\log p(x)}{D \log 2} + 8

    With uniform dequantisation its mean bounds the code length of the discrete image from above;
    at the centres of the bins it does not.

    Args:
        log_p: Log-density at dequantised images, in nats, any shape.
        n_dims: Dimensions ``D`` of an image.

    Returns:
        Bits per dimension, shape of ``log_p``.

    References:
        Theis et al., *A note on the evaluation of generative models*, ICLR 2016.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.zeros(1), 784)  # the uniform density
        tensor([8.])
    """
    return 8.0 - log_p / (n_dims * math.log(2.0))
