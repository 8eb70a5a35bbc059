import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from steer_lightning.functional import (
    masked_gaussian_log_prob,
    standard_normal_kl,
    standard_normal_log_prob,
)
from tests.helpers.problems import times


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 2, 3)])
def test_equals_scipys_normal_density(shape):
    z = randn(*shape)
    expected = stats.norm.logpdf(z.numpy()).reshape(len(z), -1).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(z), torch.from_numpy(expected))


@pytest.mark.parametrize("std", [0.3, torch.tensor([0.3, 0.1, 2.0], dtype=torch.float64)])
def test_the_masked_density_is_averaged_over_times_then_over_features(std):
    values, mean = randn(4, 6, 3), randn(2, 4, 6, 3, seed=1)  # two draws of each mean
    mask = (randn(4, 6, 3, seed=2) > 0).double()
    mask[0, :, 1] = 0.0
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


def test_what_the_mask_leaves_out_has_no_influence():
    values, mask = randn(1, 2, 1), times(1.0, 0.0).view(1, 2, 1)
    other = values.clone()
    other[0, 1] = 1e6
    mean = torch.zeros_like(values)
    found = [masked_gaussian_log_prob(x, mean, 1.0, mask) for x in (values, other)]
    assert torch.equal(*found)


def test_the_divergence_is_torchs():
    mean, std = randn(4, 3), randn(4, 3, seed=1).exp()
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(standard_normal_kl(mean, std), expected)
