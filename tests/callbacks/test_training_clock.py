from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from steer_lightning.callbacks import NFEMonitor, TrainingClock, training_clock
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.models import OwnModel, seeded, tiny_loader, tiny_trainer


class Clocks:
    """Wall-clock and processor time, which stand still unless a test moves them."""

    def __init__(self):
        self.wall, self.cpu = 100.0, 7.0

    def move(self, wall, cpu):
        self.wall += wall
        self.cpu += cpu


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    readers = {"perf_counter": lambda: clocks.wall, "process_time": lambda: clocks.cpu}
    monkeypatch.setattr(training_clock, "time", SimpleNamespace(**readers))
    return clocks


class Timed(OwnModel):
    """A training batch takes 2 s and 3 s of processors; a validation batch 50 s and 60 s."""

    def __init__(self, clocks):
        super().__init__()
        self.clocks = clocks

    def training_step(self, batch, batch_idx):
        self.clocks.move(2.0, 3.0)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clocks.move(50.0, 60.0)


class Between(Callback):
    """Time that passes between batches; keeps what the clock has logged."""

    def __init__(self, clocks):
        self.clocks = clocks
        self.logged = []

    def on_train_batch_end(self, trainer, *_):
        metrics = trainer.callback_metrics
        self.logged.append(tuple(float(metrics[f"train/{k}"]) for k in ("seconds", "cpu_seconds")))
        self.clocks.move(1000.0, 1000.0)


def fit(clocks, *callbacks, ckpt_path=None, **settings):
    between = Between(clocks)
    trainer = tiny_trainer(*callbacks, between, max_epochs=2, **settings)
    loaders = tiny_loader(), tiny_loader()
    trainer.fit(seeded(Timed, clocks), *loaders, ckpt_path=ckpt_path, weights_only=True)
    return between.logged


def test_only_training_batches_count(clocks):
    clock = TrainingClock()
    logged = fit(clocks, clock, num_sanity_val_steps=1)
    assert logged == [(2.0, 3.0), (4.0, 6.0), (6.0, 9.0), (8.0, 12.0)]
    assert [(c.step, c.epoch, c.seconds, c.cpu_seconds) for c in clock.checks] == [
        (2, 0, 4.0, 6.0),
        (4, 1, 8.0, 12.0),
    ]


def test_a_resumed_run_continues(clocks, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    first, second = TrainingClock(), TrainingClock()
    whole = fit(clocks, first, checkpoint, enable_checkpointing=True)
    resumed = fit(clocks, second, ckpt_path=tmp_path / "step=2.ckpt")
    assert resumed == whole[2:] == [(6.0, 9.0), (8.0, 12.0)]
    assert second.totals == first.totals
    assert second.checks[-1] == first.checks[-1]


def test_a_batch_on_a_gpu_ends_when_the_device_is_done(clocks, monkeypatch):
    """A device that works for 5 s after a batch of 2 s was queued, and for 50 s in validation."""
    queued, gpu = [], torch.device("cuda", 1)

    def wait(device):
        assert device == gpu
        while queued:
            clocks.move(queued.pop(), 0.0)

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    clock, module = TrainingClock(), SimpleNamespace(device=gpu, log_dict=lambda _: None)
    queued.append(50.0)
    clock.on_train_batch_start(None, module, None, 0)
    clocks.move(2.0, 3.0)
    queued.append(5.0)
    clock.on_train_batch_end(None, module, {})
    assert clock.totals["seconds"] == 7.0
    assert clock.totals["cpu_seconds"] == 3.0


def test_real_clocks_go_forward():
    clock = TrainingClock()
    assert not any(clock.totals.values())
    logged = fit(Clocks(), clock)
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(logged))
    assert logged[-1] == pytest.approx((clock.totals["seconds"], clock.totals["cpu_seconds"]))


class Validated(OwnModel):
    """Solves with three evaluations in a training batch, and logs a metric."""

    def __init__(self):
        super().__init__()
        self.block.solver = FixedGridSolver("euler", 3)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/x", 1.0)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("monitored", [True, False])
def test_checks_count_the_evaluations_of_training_batches(before, monitored):
    clock = TrainingClock()
    callbacks = [clock]
    callbacks[before:before] = [NFEMonitor()] if monitored else []
    trainer = tiny_trainer(*callbacks, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(seeded(Validated), tiny_loader(), tiny_loader())
    assert [check.nfe_forward for check in clock.checks] == [6.0, 12.0]
    assert [set(check.metrics) - {"val/nfe_forward"} for check in clock.checks] == [{"val/x"}] * 2
    trainer.validate(trainer.lightning_module, tiny_loader(), verbose=False)
    assert len(clock.checks) == 2
