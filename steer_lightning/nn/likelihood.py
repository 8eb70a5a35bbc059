"""Log-densities and what is made of them."""

import math

import torch
from torch import Tensor


def standard_normal_log_prob(z: Tensor) -> Tensor:
    r"""Log-density of :math:`\mathcal{N}(0, I)` in nats, ``(B,)``, at points ``(B, ...)``."""
    flat = z.flatten(1) if z.ndim > 1 else z[:, None]
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2.0 * math.pi)


def bits_per_dim(log_p: Tensor, n_dims: int) -> Tensor:
    r"""Bits per dimension of images of 256 grey values, of a density on the unit cube.

    .. math:: -\frac{\log p(x)}{D \log 2} + 8

    With uniform dequantisation its mean bounds the code length of the discrete image from above;
    at the centres of the bins it does not.

    Args:
        log_p: Log-density at dequantised images, in nats, any shape.
        n_dims: Dimensions ``D`` of an image.

    References:
        Theis et al., *A note on the evaluation of generative models*, ICLR 2016.
    """
    return 8.0 - log_p / (n_dims * math.log(2.0))


def masked_gaussian_log_prob(
    values: Tensor, mean: Tensor, std: float | Tensor, mask: Tensor
) -> Tensor:
    """Gaussian log-density of each series in nats per value, shape ``(...)``.

    Averages over the times where a feature is kept, then over the features; a feature that is kept
    nowhere counts as zero, as in the latent ODE of Rubanova et al.

    Args:
        values: Values, shape ``(..., T, D)``; what the mask leaves out may be anything finite.
        mean: Means, broadcastable against ``values``.
        std: Standard deviation of the noise, a number or broadcastable against ``values``.
        mask: One where a value counts, shape ``(..., T, D)``.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907.
    """
    scale = torch.as_tensor(std, dtype=values.dtype, device=values.device)
    log_p = -0.5 * ((values - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    kept = mask.sum(-2)
    return ((log_p * mask).sum(-2) / kept.clamp(min=1.0)).mean(-1)


def standard_normal_kl(mean: Tensor, std: Tensor) -> Tensor:
    r"""Divergence :math:`KL(\mathcal{N}(\mu, \sigma^2) \,\|\, \mathcal{N}(0, 1))`, elementwise.

    In nats, for standard deviations :math:`\sigma > 0`.
    """
    return 0.5 * (mean.square() + std.square() - 1.0) - std.log()


def importance_bound(log_likelihood: Tensor, kl: Tensor, kl_weight: float | Tensor) -> Tensor:
    r"""Objective of latent ODEs over several draws, in its published form, for each sample.

    .. math:: \log \frac{1}{S} \sum_{s=1}^{S} \exp\bigl(\log p(x \mid z_s) - w \, KL\bigr)

    With one draw and :math:`w = 1` it is the evidence lower bound. With more it bounds nothing, as
    the divergence is not weighed draw by draw: it may exceed the log-evidence.

    Args:
        log_likelihood: Of each draw, shape ``(S, B)``, in nats.
        kl: Divergence of the posterior from the prior, shape ``(B,)``.
        kl_weight: Weight ``w`` of the divergence.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907.
    """
    mean = torch.logsumexp(log_likelihood, dim=0) - math.log(len(log_likelihood))
    return mean - kl_weight * kl
