import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules import ToyDensityDataModule
from steer_lightning.functional import standard_normal_log_prob
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField


class Still(nn.Module):
    """A field that moves nothing: the flow's density is its base's."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, t, y):
        return self.zero * y


def loader(*tensors, batch_size):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_nll_is_the_weighted_mean_over_all_batches(trainer, stage):
    module = CNFModule(CNF(Still(), (2,)))
    x, weight = torch.randn(7, 2), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.5, 10.0])
    run = trainer.validate if stage == "val" else trainer.test
    log_p = standard_normal_log_prob(x)
    (weighted,) = run(module, loader(x, weight, batch_size=3), verbose=False)
    expected = -(weight * log_p).sum() / weight.sum()
    assert weighted[f"{stage}/nll"] == pytest.approx(float(expected), rel=1e-6)
    (plain,) = run(module, loader(x, batch_size=3), verbose=False)
    assert plain[f"{stage}/nll"] == pytest.approx(float(-log_p.mean()), rel=1e-6)


def test_evaluate_by_hand():
    module = CNFModule(CNF(Still(), (2,)))
    x, weight = torch.randn(4, 2), torch.tensor([0.0, 1.0, 2.0, 5.0])
    log_p = standard_normal_log_prob(x)
    for batch in (x, (x,), [x]):
        torch.testing.assert_close(module.evaluate(batch)["nll"], -log_p.mean())
    found = module.evaluate((x, weight))
    torch.testing.assert_close(found["loss"], -(weight * log_p).sum() / 8.0)
    assert found["nll"] is found["loss"]


def test_quadrature_gives_the_cross_entropy(trainer):
    data = ToyDensityDataModule("mixture1d", n_test=999, test_points="quadrature")
    (result,) = trainer.test(CNFModule(CNF(Still(), (1,))), data, verbose=False)
    means = torch.tensor([-2.8, -0.9, 2.0, 3.4, 5.1], dtype=torch.float64)
    # E[-log N(x; 0, 1)] = (log(2 pi) + E[x^2]) / 2
    second_moment = 0.4 + means.square().mean()
    expected = 0.5 * (torch.log(torch.tensor(2.0 * torch.pi)) + second_moment)
    assert result["test/nll"] == pytest.approx(float(expected), rel=1e-5)


def test_predict_gives_latents_and_densities(trainer):
    module = CNFModule(CNF(ConcatSquashField(2, (8,)), (2,)))
    x = torch.randn(5, 2)
    (prediction,) = trainer.predict(module, loader(x, torch.ones(5), batch_size=5))
    assert prediction.keys() == {"x", "z", "log_p"}
    assert torch.equal(prediction["x"], x)
    with torch.no_grad():
        torch.testing.assert_close(prediction["z"], module.flow(x)[0])
        torch.testing.assert_close(prediction["log_p"], module.flow.log_prob(x))
