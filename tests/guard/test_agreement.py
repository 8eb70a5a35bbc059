"""The parts of an agreement; whole ones, of two ranks, are in tests/distributed."""

from types import SimpleNamespace

import lightning.pytorch.strategies
import pytest
from pytorch_lightning.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
)
from torch import nn

from steer_lightning.guard.agreement import agree, can_agree, is_ddp, late_logs
from steer_lightning.solvers import NonFiniteStateError


class OwnDDP(DDPStrategy):
    pass


@pytest.mark.parametrize(
    ("strategy_class", "expected"),
    [
        (DDPStrategy, True),
        (OwnDDP, True),
        (lightning.pytorch.strategies.DDPStrategy, True),
        (DeepSpeedStrategy, False),
        (lightning.pytorch.strategies.DeepSpeedStrategy, False),
        (FSDPStrategy, False),
        (SingleDeviceStrategy, False),
    ],
)
def test_ddp_is_told_by_its_class(strategy_class, expected):
    assert is_ddp(strategy_class.__new__(strategy_class)) is expected


@pytest.mark.parametrize(
    ("world_size", "strategy", "layer", "automatic", "expected"),
    [
        (1, DDPStrategy(), nn.Linear(1, 1), True, False),
        (2, DDPStrategy(), nn.Linear(1, 1), True, True),
        (2, FSDPStrategy(), nn.Linear(1, 1), True, False),
        (2, DDPStrategy(), nn.SyncBatchNorm(1), True, False),
        (2, DDPStrategy(), nn.Linear(1, 1), False, False),
    ],
)
def test_who_can_agree(world_size, strategy, layer, automatic, expected):
    module = nn.Sequential(layer)
    module.automatic_optimization = automatic
    trainer = SimpleNamespace(world_size=world_size, strategy=strategy)
    assert can_agree(trainer, module) is expected


def test_an_error_is_told_to_all(monkeypatch):
    own, other = (NonFiniteStateError(t, "forward") for t in (0.5, 0.25))

    def gather(told, mine):
        told[:] = [None, other, mine]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda fine, all: fine)
    trainer = SimpleNamespace(world_size=3, strategy=strategy)
    assert agree(trainer, None) is None
    assert agree(trainer, own) is other


class Module:
    def __init__(self):
        self.logged = []

    def log(self, name, value, **settings):
        self.logged.append((name, value, settings))


def test_logs_come_late_or_not_at_all():
    module = Module()
    with pytest.raises(KeyError), late_logs(module):
        raise KeyError
    assert "log" not in vars(module)
    with late_logs(module):
        module.log("a", 1)
    with late_logs(module) as replay:
        module.log("b", 2, sync_dist=True)
        assert module.logged == []
    replay()
    assert module.logged == [("b", 2, {"sync_dist": True})]
