import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.modules import RegressionModule
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.problems import LinearField

X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)


@pytest.fixture
def module():
    """A model whose prediction is ``x_1 + x_2`` after one Euler step of ``y' = A y``."""
    head = nn.Linear(2, 1, bias=False)
    nn.init.ones_(head.weight)
    return RegressionModule(ODEBlock(LinearField(), FixedGridSolver("euler", 1)), head.double())


def errors(module):
    a = module.block.vector_field.a.detach()
    return ((X + X @ a.T).sum(1, keepdim=True) - TARGETS).flatten()


def test_evaluate_by_hand(module):
    found, error = module.evaluate((X, TARGETS)), errors(module)
    assert found["loss"].item() == pytest.approx(error.square().mean().item())
    assert found["mse"].item() == found["loss"].item()
    assert found["mae"].item() == pytest.approx(error.abs().mean().item())


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_over_batches_of_unequal_size(module, trainer, stage):
    run = trainer.validate if stage == "val" else trainer.test
    loader = DataLoader(TensorDataset(X, TARGETS), batch_size=2)
    (found,) = run(module, loader, verbose=False)
    mse = errors(module).square().mean().item()
    assert found == {
        f"{stage}/loss": pytest.approx(mse, rel=1e-6),
        f"{stage}/mse": pytest.approx(mse, rel=1e-6),
        f"{stage}/mae": pytest.approx(errors(module).abs().mean().item(), rel=1e-6),
    }


def test_a_loss_of_nan_is_reported(module, trainer):
    loader = DataLoader(TensorDataset(X, TARGETS * torch.tensor([[1.0], [torch.nan], [1.0]])))
    (found,) = trainer.validate(module, loader, verbose=False)
    assert math.isnan(found["val/loss"])


@pytest.mark.parametrize("labelled", [True, False])
def test_predict_gives_the_heads_outputs(module, trainer, labelled):
    data = TensorDataset(X, TARGETS) if labelled else X
    predicted = torch.cat(trainer.predict(module, DataLoader(data, batch_size=2)))
    torch.testing.assert_close(predicted - TARGETS, errors(module)[:, None])


def test_targets_of_another_dtype_train(module):
    module.float()
    module.evaluate((X.float(), TARGETS))["loss"].backward()
    assert module.head.weight.grad.dtype == torch.float32


def test_outputs_of_low_precision_do_not_round_the_targets():
    module = RegressionModule(nn.Identity(), nn.Identity())
    target = torch.tensor([[1.001]])
    found = module.evaluate((torch.ones(1, 1, dtype=torch.bfloat16), target))
    assert found["mae"].item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("targets", [TARGETS[:, 0], torch.zeros(3, 2)])
def test_targets_of_another_shape_are_refused_at_the_first_batch(module, trainer, targets):
    message = f"the head's outputs, (3, 1), but got {tuple(targets.shape)}. Change the head's"
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.fit(module, DataLoader(TensorDataset(X, targets), batch_size=3))
    assert trainer.global_step == 0
