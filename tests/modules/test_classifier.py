import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.modules import ClassifierModule
from steer_lightning.nn import Augmented, MLPField, ODEBlock
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


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_logits_and_evaluate_by_hand(module, dtype):
    torch.testing.assert_close(module(X), 2.0 * X)
    found = module.evaluate((X, LABELS.to(dtype)))
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
        f"{stage}/calibration_error": pytest.approx(calibration_error(2.0 * X, LABELS)),
    }


def test_a_model_that_gives_nan_has_no_accuracy(module, trainer):
    data = DataLoader(TensorDataset(X.clone(), LABELS), batch_size=4)
    data.dataset.tensors[0][0, 0] = torch.nan
    (found,) = trainer.test(module, data, verbose=False)
    assert math.isnan(found["test/accuracy"])
    assert math.isnan(found["test/calibration_error"])
    assert math.isnan(module.evaluate((X * torch.nan, LABELS))["accuracy"])


def calibration_error(logits, labels, n_bins=15):
    """Gap between mean confidence and accuracy of each bin, weighted by its share."""
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * n_bins).long()
    gaps = [
        (confidence[bins == i] - (predicted == labels)[bins == i].float()).sum().abs()
        for i in bins.unique()
    ]
    return float(sum(gaps) / len(labels))


def test_calibration_takes_logits_between_0_and_1_for_logits(trainer):
    module = ClassifierModule(nn.Identity(), nn.Identity(), 3)
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1]])
    loader = DataLoader(TensorDataset(logits, torch.tensor([0, 1])), batch_size=2)
    (found,) = trainer.test(module, loader, verbose=False)
    gap = 1.0 - logits.softmax(1).max(1).values.mean()
    assert found["test/calibration_error"] == pytest.approx(gap.item())


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


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_trajectories_go_from_the_initial_state_to_the_features(offset):
    block = Augmented(ODEBlock(Scale(1.0), FixedGridSolver("rk4", 4)), 2)
    module = ClassifierModule(block, nn.Identity(), 5, stem=nn.ReLU())
    block.block.horizon.perturb(FixedOffset(offset))
    found = module.trajectories(X - 1.0, torch.tensor([0.0, 0.5, 1.0, 1.5]))
    start = F.pad((X - 1.0).relu(), (0, 2))
    times = (1.0 + offset) * torch.tensor([0.0, 0.5, 1.0, 1.5])
    torch.testing.assert_close(found, times.exp()[:, None, None] * start, rtol=1e-3, atol=0.0)
    assert found.shape == (4, 5, 5)


def test_trajectories_must_start_where_the_block_does(module):
    with pytest.raises(ValueError, match=r"`t_eval` to start where the block does, at 0, but got"):
        module.trajectories(X, torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "Expected labels from 0 to num_classes - 1 = 2, but got 1 to 3. Count"),
        (LABELS - 1, "Expected labels from 0 to num_classes - 1 = 2, but got -1 to 1. Count"),
        (LABELS.float(), "its label, shape (5,), but got torch.float32 of shape (5,). Give"),
        (F.one_hot(LABELS), "its label, shape (5,), but got torch.int64 of shape (5, 3). Give"),
        (LABELS == 1, "its label, shape (5,), but got torch.bool of shape (5,). Give"),
    ],
)
@pytest.mark.parametrize("run", ["fit", "validate"])
def test_wrong_labels_are_refused_at_the_first_batch(module, trainer, run, labels, message):
    loader = DataLoader(TensorDataset(X, labels), batch_size=5)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(trainer, run)(module, loader)
    assert trainer.global_step == 0


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_head_of_another_width_is_refused(trainer, num_classes):
    module = ClassifierModule(ODEBlock(Scale(1.0)), nn.Linear(3, 3), num_classes)
    message = f"num_classes = {num_classes} logits for each sample, shape (5, {num_classes}), but "
    with pytest.raises(ValueError, match=re.escape(f"{message}the head gave (5, 3). Change")):
        trainer.fit(module, DataLoader(TensorDataset(X, LABELS), batch_size=5))
