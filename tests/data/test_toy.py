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
