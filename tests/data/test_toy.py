import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torchmetrics import MeanMetric

from datamodules.toy import ToyDensityDataModule
from datamodules.toy_densities import DENSITIES, MixtureDensity


@pytest.mark.parametrize("name", DENSITIES)
def test_batches(name):
    data = ToyDensityDataModule(name, n_train=250, n_val=30, n_test=20)
    data.setup()
    x, weight = next(iter(data.train_dataloader()))
    assert x.shape == (100, data.density.dim)
    assert x.dtype == weight.dtype == torch.float32
    assert torch.equal(weight, torch.ones(100))
    for loader, n in [
        (data.train_dataloader(), 250),
        (data.val_dataloader(), 30),
        (data.test_dataloader(), 20),
        (data.predict_dataloader(), 20),
    ]:
        assert sum(len(x) for x, _ in loader) == n


def first_points(seed: int, stage: str = "fit") -> torch.Tensor:
    data = ToyDensityDataModule("moons", n_train=50, n_val=50, n_test=50, seed=seed)
    data.setup(stage)
    return next(iter(data.val_dataloader() if stage == "fit" else data.test_dataloader()))[0]


def test_seed_reproduces_and_splits_are_independent():
    assert torch.equal(first_points(0), first_points(0))
    assert not torch.equal(first_points(0), first_points(1))
    assert not torch.equal(first_points(0), first_points(0, "test"))


def test_weighted_mean_is_the_cross_entropy():
    p, q = Normal(0.3, 0.8), Normal(-0.5, 1.1)
    data = ToyDensityDataModule("mixture1d", test_points="quadrature", n_test=777)
    data.density = MixtureDensity([[0.3]], variance=0.64)
    data.eval_batch_size = 100
    data.setup("test")
    weighted, plain = MeanMetric(), MeanMetric()
    for x, weight in data.test_dataloader():
        loss = -q.log_prob(x.squeeze(-1))
        weighted.update(loss, weight)
        plain.update(weight * loss)
    expected = float(p.entropy() + kl_divergence(p, q))
    assert float(weighted.compute()) == pytest.approx(expected, abs=1e-5)
    # Weights average 1, so the plain mean of weighted losses agrees.
    assert float(plain.compute()) == pytest.approx(expected, abs=1e-5)


def test_quadrature_changes_the_test_set_only():
    sampled = ToyDensityDataModule("mixture1d", n_train=30, n_val=20, n_test=10)
    nodes = ToyDensityDataModule(
        "mixture1d", n_train=30, n_val=20, n_test=10, test_points="quadrature"
    )
    for data in (sampled, nodes):
        data.setup()
    for loader in ("train_dataloader", "val_dataloader"):
        (a, _), (b, _) = (next(iter(getattr(data, loader)())) for data in (sampled, nodes))
        assert torch.equal(a, b)
    x, weight = next(iter(nodes.predict_dataloader()))
    assert (x[1:] > x[:-1]).all()
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["8gaussians", "moons"])
def test_quadrature_needs_one_dimension(name):
    with pytest.raises(ValueError, match=f"one-dimensional density in closed form .* '{name}'"):
        ToyDensityDataModule(name, test_points="quadrature")


@pytest.mark.parametrize("size", ["n_train", "n_val", "n_test", "batch_size"])
def test_sizes_below_one_raise(size):
    with pytest.raises(ValueError, match=f"Expected `{size}` to be at least 1, but got 0"):
        ToyDensityDataModule(**{size: 0})


def test_unknown_arguments_raise():
    with pytest.raises(ValueError, match=r"`test_points` to be one of .*, but got 'grid'"):
        ToyDensityDataModule(test_points="grid")
    with pytest.raises(ValueError, match="Did you mean 'pinwheel'"):
        ToyDensityDataModule("pinwhel")
