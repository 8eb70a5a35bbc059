"""Ways of training that a policy does not go with."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steer_lightning.guard import SolverGuard
from steer_lightning.guard.refusals import refuse_unguardable
from steer_lightning.solvers import NonFiniteStateError
from tests.helpers.faults import FaultyModel, loader
from tests.helpers.models import ForeignModel, seeded, tiny_loader, tiny_trainer

policies = pytest.mark.parametrize("policy", ["skip", "fallback"])


class Manual(FaultyModel):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


@policies
def test_manual_optimisation(policy):
    with pytest.raises(
        MisconfigurationException,
        match=rf"automatic optimisation with SolverGuard\(policy='{policy}'\), but Manual .*Catch",
    ):
        tiny_trainer(SolverGuard(policy)).fit(seeded(Manual), loader("none"))


def test_manual_optimisation_may_raise_with_the_place():
    with pytest.raises(NonFiniteStateError, match=r"block 'block'.*epoch 0, batch 1, rank 0\."):
        tiny_trainer(SolverGuard()).fit(seeded(Manual), loader("none", "nan"))


@policies
def test_lbfgs(policy):
    class Closures(FaultyModel):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match=r"evaluates once a step .* got LBFGS"):
        tiny_trainer(SolverGuard(policy)).fit(seeded(Closures), loader("none"))


@policies
@pytest.mark.parametrize("reason", ["sharded", "synchronised"])
def test_ranks_that_meet_inside_the_step(policy, reason, monkeypatch):
    class Two:
        world_size = 2
        strategy = SimpleNamespace(model=None)

    model = seeded(FaultyModel)
    if reason == "synchronised":
        Two.strategy.model = DistributedDataParallel.__new__(DistributedDataParallel)
        model.norm = nn.SyncBatchNorm.convert_sync_batchnorm(model.norm)
    with pytest.raises(
        MisconfigurationException,
        match=r"DistributedDataParallel .*without synchronised batch norm .*on 2 processes, but "
        r"got the strategy SimpleNamespace with FaultyModel: .*policy='raise'",
    ):
        refuse_unguardable(Two(), model, policy)


def test_nothing_to_put_on_a_fixed_grid():
    with pytest.raises(MisconfigurationException, match="ForeignModel holds none: there is noth"):
        tiny_trainer(SolverGuard("fallback")).fit(seeded(ForeignModel), tiny_loader())


def test_a_foreign_model_may_be_skipped_and_raised():
    for policy in ("raise", "skip"):
        tiny_trainer(SolverGuard(policy)).fit(seeded(ForeignModel), tiny_loader())


def test_a_step_that_fetches_its_own_batch():
    class Fetches(FaultyModel):
        def training_step(self, dataloader_iter):
            return self.loss(next(dataloader_iter)[0])

    tiny_trainer(SolverGuard("skip")).fit(seeded(Fetches), loader("none"))
    with pytest.raises(MisconfigurationException, match=r"`dataloader_iter`: run again, it would"):
        tiny_trainer(SolverGuard("fallback")).fit(seeded(Fetches), loader("none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "skp"}, "Expected `policy` to be one of .* Did you mean 'skip'"),
        ({"random_fields": "wan"}, "Expected `random_fields` .* Did you mean 'warn'"),
        ({"max_consecutive": 0}, "Expected `max_consecutive` >= 1, but got 0"),
        ({"fallback_steps": 0}, "Expected `fallback_steps` >= 1, but got 0"),
        ({"min_dt": -1.0}, r"Expected `min_dt` >= 0, but got -1\.0"),
        ({"max_rejected": 0.0}, r"Expected 0 < `max_rejected` <= 1, but got 0\.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SolverGuard(**settings)
