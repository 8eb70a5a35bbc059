import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.modules import ClassifierModule
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver


class Scale(nn.Module):
    """``f(t, y) = a y``: one Euler step over [0, 1] multiplies by ``1 + a``."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, t, y):
        return self.a * y


@pytest.fixture
def module():
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    return ClassifierModule(ODEBlock(Scale(1.0), FixedGridSolver("euler", 1)), head, 3)


X = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [0, 3.0, 0], [0.5, 0, 1.0], [1.0, 0, 0]])
LABELS = torch.tensor([0, 1, 2, 2, 1])  # the third and the last are wrong


def test_logits_by_hand(module):
    torch.testing.assert_close(module(X), 2.0 * X)


def test_evaluate_by_hand(module):
    found = module.evaluate((X, LABELS))
    log_p = (2.0 * X).log_softmax(1)
    expected = -(log_p[0, 0] + log_p[1, 1] + log_p[2, 2] + log_p[3, 2] + log_p[4, 1]) / 5.0
    torch.testing.assert_close(found["loss"], expected)
    assert found["accuracy"].item() == pytest.approx(3 / 5)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_over_batches_of_unequal_size(module, trainer, stage):
    run = trainer.validate if stage == "val" else trainer.test
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=4)
    (found,) = run(module, loader, verbose=False)
    assert found == {
        f"{stage}/loss": pytest.approx(F.cross_entropy(2.0 * X, LABELS).item()),
        f"{stage}/accuracy": pytest.approx(3 / 5),
    }


@pytest.mark.parametrize("labelled", [True, False])
def test_predict_gives_probabilities(module, trainer, labelled):
    data = TensorDataset(X, LABELS) if labelled else X
    batches = trainer.predict(module, DataLoader(data, batch_size=4))
    assert [batch.shape for batch in batches] == [(4, 3), (1, 3)]
    torch.testing.assert_close(torch.cat(batches), (2.0 * X).softmax(1))


def test_features_of_any_shape_are_flattened():
    module = ClassifierModule(ODEBlock(MLPField(6, (4,))), nn.Linear(6, 2), num_classes=2)
    assert module(torch.zeros(3, 6)).shape == (3, 2)

    class Images(nn.Module):
        def forward(self, t, y):
            return torch.zeros_like(y)

    module = ClassifierModule(ODEBlock(Images()), nn.Linear(12, 2), num_classes=2)
    assert module(torch.zeros(3, 2, 2, 3)).shape == (3, 2)
