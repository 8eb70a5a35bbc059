import math

import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from steer_lightning.nn.likelihood import (
    bits_per_dim,
    importance_bound,
    masked_gaussian_log_prob,
    standard_normal_kl,
    standard_normal_log_prob,
)

GREY = torch.arange(256.0, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 2, 3)])
def test_equals_scipys_normal_density(shape):
    z = randn(*shape)
    expected = stats.norm.logpdf(z.numpy()).reshape(len(z), -1).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(z), torch.from_numpy(expected))


@pytest.mark.parametrize("n_dims", [1, 784])
def test_bits_of_a_density_that_is_constant_on_each_bin(n_dims):
    logistic = stats.logistic(loc=100.0, scale=7.0)
    p = torch.from_numpy(logistic.cdf(GREY + 1.0) - logistic.cdf(GREY))
    log_p = n_dims * torch.log(256.0 * p)  # n_dims pixels of one value
    torch.testing.assert_close(bits_per_dim(log_p, n_dims), -torch.log2(p))


@pytest.mark.parametrize("std", [0.3, torch.tensor([0.3, 0.1, 2.0], dtype=torch.float64)])
def test_the_masked_density_is_averaged_over_times_then_over_features(std):
    values, mean = randn(4, 6, 3), randn(2, 4, 6, 3, seed=1)  # two draws of each mean
    mask = (randn(4, 6, 3, seed=2) > 0).double()
    mask[0, :, 1] = 0.0
    values[mask == 0] = 1e6  # what is left out has no influence
    found = masked_gaussian_log_prob(values, mean, std, mask)
    log_p = torch.from_numpy(stats.norm.logpdf(values, mean, std))
    for s in range(2):
        for b in range(4):
            kept = [log_p[s, b, mask[b, :, d] == 1, d] for d in range(3)]
            expected = sum(x.mean() for x in kept if len(x)) / 3
            torch.testing.assert_close(found[s, b], expected)
    assert found.shape == (2, 4)


def test_nothing_kept_is_zero_with_a_gradient_of_zero():
    mean = randn(1, 2, 3).requires_grad_()
    log_p = masked_gaussian_log_prob(randn(1, 2, 3), mean, 0.1, torch.zeros(1, 2, 3).double())
    log_p.sum().backward()
    assert log_p.tolist() == [0.0]
    assert not bool(mean.grad.any())


def test_the_divergence_is_torchs():
    mean, std = randn(4, 3), randn(4, 3, seed=1).exp()
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(standard_normal_kl(mean, std), expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_the_importance_bound_is_the_log_of_the_mean_evidence(kl_weight):
    log_likelihood, kl = randn(3, 4), randn(4, seed=1).abs()
    expected = (log_likelihood - kl_weight * kl).exp().mean(0).log()
    torch.testing.assert_close(importance_bound(log_likelihood, kl, kl_weight), expected)


def test_the_importance_bound_holds_far_below_zero():
    bound = importance_bound(torch.tensor([[-1e4], [-2e4]]), torch.zeros(1), 1.0)
    torch.testing.assert_close(bound, torch.tensor([-1e4 - math.log(2.0)]))
