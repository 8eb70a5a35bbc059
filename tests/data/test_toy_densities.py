import math

import pytest
import torch

from datamodules.toy_densities import (
    DENSITIES,
    MixtureDensity,
    get_density,
)

N = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_are_reproducible_and_at_the_common_scale(name):
    density = get_density(name)
    before = torch.get_rng_state()
    x = density.sample(N, generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert x.shape == (N, density.dim)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert 2.0 < float(x.abs().quantile(0.99)) < 7.0
    assert torch.equal(x, density.sample(N, generator()))
    assert not torch.equal(x, density.sample(N, generator(1)))


@pytest.mark.parametrize("name", ["mixture1d", "8gaussians"])
def test_density_integrates_to_one_over_its_support(name):
    density, n = get_density(name), 400
    low, width = density.support[0], (density.support[1] - density.support[0]) / n
    axis = low + width * (torch.arange(n, dtype=torch.float64) + 0.5)
    grid = torch.stack(torch.meshgrid(*[axis] * density.dim, indexing="ij"), dim=-1)
    mass = density.log_prob(grid).exp().sum() * width**density.dim
    assert float(mass) == pytest.approx(1.0, abs=1e-9)


def test_mixture_against_torch_distributions():
    means = [[0.0, 1.0], [-2.0, 0.5], [3.0, -1.0]]
    components = torch.distributions.MultivariateNormal(
        torch.tensor(means).double(), 0.3 * torch.eye(2).double()
    )
    uniform = torch.distributions.Categorical(torch.ones(3).double())
    expected = torch.distributions.MixtureSameFamily(uniform, components)
    x = 3.0 * torch.randn(4, 5, 2, generator=generator(), dtype=torch.float64)
    got = MixtureDensity(means, variance=0.3).log_prob(x)
    torch.testing.assert_close(got, expected.log_prob(x))


def test_mixture_samples_have_the_closed_form_moments_and_entropy():
    means, density = torch.tensor([-2.8, -0.9, 2.0, 3.4, 5.1]), get_density("mixture1d")
    x = density.sample(N, generator())
    variance = float(means.var(correction=0)) + 0.4
    assert float(x.mean()) == pytest.approx(float(means.mean()), abs=5 * math.sqrt(variance / N))
    assert float(x.var()) == pytest.approx(variance, rel=0.03)
    assert float(-density.log_prob(x).mean()) == pytest.approx(2.281, abs=0.02)


def test_eight_gaussians_moments():
    x = get_density("8gaussians").sample(N, generator())
    # Half of the squared radius, plus the variance of a component.
    variance = 0.5 * 8.0 + 0.125
    assert x.mean(0).abs().max() < 5 * math.sqrt(variance / N)
    torch.testing.assert_close(x.T.cov(), variance * torch.eye(2), atol=0.15, rtol=0.0)


def test_checkerboard_is_uniform_on_the_black_squares():
    x = get_density("checkerboard").sample(N, generator())
    assert bool((x.abs() <= 4.0).all())
    column, row = ((x + 4.0) / 2.0).floor().long().T
    assert bool(((column + row) % 2 == 0).all())
    counts = torch.bincount(4 * column + row, minlength=16)
    used = counts[counts > 0]
    assert len(used) == 8
    assert (used - N / 8).abs().max() < 5 * math.sqrt(N / 8)
    # A uniform law on [-4, 4] along each axis, by symmetry of the board.
    torch.testing.assert_close(x.var(0), torch.full((2,), 64.0 / 12.0), atol=0.1, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "inner", "outer"), [("circles", 1.5, 3.0), ("swissroll", 1.178, 3.534)]
)
def test_radii(name, inner, outer):
    radius = get_density(name).sample(N, generator()).norm(dim=-1)
    assert float(radius.quantile(0.001)) > inner - 0.7
    assert float(radius.quantile(0.999)) < outer + 0.7
    assert float(radius.quantile(0.1)) < inner + 0.5
    assert float(radius.quantile(0.9)) > outer - 0.5


@pytest.mark.parametrize(("name", "turns"), [("pinwheel", 5), ("2spirals", 2), ("moons", 2)])
def test_rotational_symmetry(name, turns):
    x = get_density(name).sample(N, generator()).double()
    angle = 2.0 * math.pi / turns
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ).double()
    bins = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)
    histogram = torch.histogramdd(x, [bins, bins]).hist / N
    rotated = torch.histogramdd(x @ rotation.T, [bins, bins]).hist / N
    assert (histogram - rotated).abs().max() < 0.012
    assert (histogram.max() > 0.03).all()
