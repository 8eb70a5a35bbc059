"""The parts of an agreement; whole ones, of two ranks, are in tests/distributed."""

from types import SimpleNamespace

import pytest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steer_lightning.guard.agreement import LateLogs, agree, can_agree, worst
from steer_lightning.solvers import NonFiniteStateError


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [(["fine"], "fine"), (["fallback", "fine"], "fallback"), (["skipped", "fallback"], "skipped")],
)
def test_worst(outcomes, expected):
    assert worst(*outcomes) == expected


@pytest.mark.parametrize(
    ("world_size", "wrapped", "layer", "automatic", "expected"),
    [
        (1, True, nn.Linear(1, 1), True, False),
        (2, True, nn.Linear(1, 1), True, True),
        (2, False, nn.Linear(1, 1), True, False),
        (2, True, nn.SyncBatchNorm(1), True, False),
        (2, True, nn.Linear(1, 1), False, False),
    ],
)
def test_who_can_agree(world_size, wrapped, layer, automatic, expected):
    module = nn.Sequential(layer)
    module.automatic_optimization = automatic
    model = DistributedDataParallel.__new__(DistributedDataParallel) if wrapped else module
    trainer = SimpleNamespace(world_size=world_size, strategy=SimpleNamespace(model=model))
    assert can_agree(trainer, module) is expected


def test_an_error_is_told_to_all(monkeypatch):
    own, other = (NonFiniteStateError(t, "forward") for t in (0.5, 0.25))

    def gather(told, mine):
        told[:] = [("fine", None), ("fallback", other), mine]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda x, reduce_op: x)
    trainer = SimpleNamespace(world_size=3, strategy=strategy)
    assert agree(trainer, "fine", None) == ("fine", None)
    assert agree(trainer, "skipped", own) == ("skipped", other)


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.logged = []

    def log(self, name, value, **settings):
        self.logged.append((name, value, settings))


def test_logs_come_late_or_not_at_all():
    module = Module()
    logs = LateLogs(module)
    with logs:
        module.log("a", 1)
    assert module.logged == []
    with logs:
        logs.forget()
        module.log("b", 2, sync_dist=True)
    logs.replay()
    assert module.logged == [("b", 2, {"sync_dist": True})]
    assert "log" not in vars(module)


def test_a_log_of_the_instance_comes_back():
    module = Module()
    module.log = own = module.log
    with pytest.raises(KeyError), LateLogs(module):
        raise KeyError
    assert vars(module)["log"] is own
