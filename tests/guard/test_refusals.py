"""Ways of training that a policy does not go with."""

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from steer_lightning.guard import SolverGuard
from steer_lightning.guard.training import refuse_undroppable
from steer_lightning.solvers import NonFiniteStateError
from tests.helpers.faults import FaultyModel, loader
from tests.helpers.models import ForeignModel, seeded, tiny_loader, tiny_trainer


class Manual(FaultyModel):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Closures(FaultyModel):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class EverySecondStep(FaultyModel):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 2}]


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (EverySecondStep, r"a schedule of every step or of epochs with .* frequency=1"),
        (Manual, r"automatic optimisation with SolverGuard\(policy='skip'\), but Manual .*Catch"),
        (Closures, r"evaluates once a step .* got LBFGS"),
    ],
)
def test_optimisation_that_cannot_drop_a_batch(model_class, message):
    with pytest.raises(MisconfigurationException, match=message):
        tiny_trainer(SolverGuard("skip")).fit(seeded(model_class), loader("none"))


def test_manual_optimisation_may_raise_with_the_place():
    with pytest.raises(NonFiniteStateError, match=r"block 'block'.*epoch 0, batch 1, rank 0\."):
        tiny_trainer(SolverGuard()).fit(seeded(Manual), loader("none", "nan"))


@pytest.mark.parametrize("strategy_class", [FSDPStrategy, DDPStrategy])
def test_ranks_that_meet_inside_the_step(strategy_class):
    class Two:
        world_size = 2
        strategy = strategy_class()

    model = seeded(FaultyModel)
    if strategy_class is DDPStrategy:
        model.norm = nn.SyncBatchNorm.convert_sync_batchnorm(model.norm)
    with pytest.raises(
        MisconfigurationException,
        match=r"DistributedDataParallel .*without synchronised batch norm .*on 2 processes, but "
        rf"got the strategy {strategy_class.__name__} with FaultyModel: .*policy='raise'",
    ):
        refuse_undroppable(Two(), model)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_foreign_model_may_be_guarded(policy):
    tiny_trainer(SolverGuard(policy)).fit(seeded(ForeignModel), tiny_loader())


def test_a_step_that_fetches_its_own_batch():
    class Fetches(FaultyModel):
        def training_step(self, dataloader_iter):
            return self.loss(next(dataloader_iter)[0])

    tiny_trainer(SolverGuard("skip")).fit(seeded(Fetches), loader("none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "fallback"}, r"Expected `policy` to be one of \['raise', 'skip'\]"),
        ({"policy": "skp"}, "Expected `policy` to be one of .* Did you mean 'skip'"),
        ({"random_fields": "wan"}, "Expected `random_fields` .* Did you mean 'warn'"),
        ({"max_consecutive": 0}, "Expected `max_consecutive` >= 1, but got 0"),
        ({"min_dt": -1.0}, r"Expected `min_dt` >= 0, but got -1\.0"),
        ({"max_rejected": 0.0}, r"Expected 0 < `max_rejected` <= 1, but got 0\.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SolverGuard(**settings)
