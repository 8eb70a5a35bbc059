import pytest
import torch

from datamodules.toy import ToyDensityDataModule
from datamodules.toy_densities import DENSITIES


@pytest.mark.parametrize("name", DENSITIES)
def test_batches(name):
    data = ToyDensityDataModule(name, n_train=250, n_val=30, n_test=20)
    data.setup()
    sizes = {"train": [100, 100, 50], "val": [30], "test": [20], "predict": [20]}
    for split, expected in sizes.items():
        batches = list(getattr(data, f"{split}_dataloader")())
        assert [x.shape for x, _ in batches] == [(n, data.density.dim) for n in expected]
        for x, weight in batches:
            assert x.dtype == weight.dtype == torch.float32
            assert torch.equal(weight, torch.ones(len(x)))


def test_quadrature_changes_the_test_set_only():
    sampled, nodes = (
        ToyDensityDataModule("mixture1d", n_train=30, n_val=20, n_test=500, test_points=kind)
        for kind in ("samples", "quadrature")
    )
    for split in ("train", "val"):
        assert torch.equal(sampled.build(split)[:][0], nodes.build(split)[:][0])
    x, weight = nodes.build("test")[:]
    assert (x[1:] > x[:-1]).all()
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-6)
    entropy = -(weight * nodes.density.log_prob(x)).mean()  # of the paper's mixture
    assert float(entropy) == pytest.approx(2.281, abs=5e-4)


def test_each_batch_of_quadrature_nodes_spans_the_support():
    data = ToyDensityDataModule(
        "mixture1d", n_test=1000, eval_batch_size=200, test_points="quadrature"
    )
    data.setup("test")
    for x, weight in data.test_dataloader():
        entropy = -(weight * data.density.log_prob(x)).sum() / weight.sum()
        assert float(entropy) == pytest.approx(2.281, abs=1e-2)
