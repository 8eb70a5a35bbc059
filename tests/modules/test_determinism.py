"""The same seed gives the same run, bit for bit, also where torch is told to be deterministic."""

import pytest
import torch
from pytorch_lightning import seed_everything

from steer_lightning import SteerCallback
from tests.helpers.watching import Log, assert_same
from tests.modules.cases import steps


@pytest.fixture(autouse=True)
def global_state(monkeypatch):
    """What a seed and ``deterministic=True`` change in the process, put back afterwards."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=[]):
        yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark


def run(case, seed=7, **settings):
    """Weights, optimiser state and logs of three steps with validation and test."""
    seed_everything(seed, verbose=False)
    module = case.module(**case.objects(), **case.plain)
    log, data = Log(), case.data()
    settings = {"max_steps": 3, "val_check_interval": 1, **settings}
    trainer = steps(SteerCallback(b=0.2), log, **settings)
    trainer.fit(module, data)
    metrics = trainer.test(module, data, verbose=False)
    state = dict(module.state_dict())
    for number, moments in trainer.optimizers[0].state_dict()["state"].items():
        state |= {f"{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    return state, log.train, metrics


def end_times(logged):
    return [{k: v for k, v in step.items() if k.startswith("steer/")} for step in logged]


def test_the_same_seed_gives_the_same_run(case):
    first, second, other = (run(case, seed) for seed in (7, 7, 8))
    assert_same(first[0], second[0])
    assert first[1:] == second[1:]
    assert len(first[1]) == 3
    assert len({tuple(step.items()) for step in end_times(first[1])}) == 3  # a draw for each step
    assert end_times(other[1]) != end_times(first[1])
    assert any(not torch.equal(v, other[0][k]) for k, v in first[0].items())
    # Every task also runs where torch refuses operations without a deterministic form.
    strict = run(case, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    torch.testing.assert_close(strict[0], first[0])
