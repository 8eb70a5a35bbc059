"""A run that stops anywhere and goes on ends where an unbroken one does, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from datamodules import PeriodicDataModule
from datamodules.base import ResumableLoader
from steer_lightning import NFEMonitor, SteerCallback
from steer_lightning.callbacks import LastCheckpoint
from steer_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from steer_lightning.guard import SolverGuard
from steer_lightning.modules import LatentODEModule
from steer_lightning.nn import LatentODE
from tests.helpers.models import seeded
from tests.modules.cases import CASES, Case

EPOCHS, BATCHES = 2, 4


class Seen(Callback):
    """The first times of every training batch, and the end times in force."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch.values[:, 0, 0].tolist()))


def run(folder, ckpt_path=None, *, num_workers=0, limit=1.0, every=1):
    """Train; a checkpoint after each batch. Gives the module and the batches it saw."""
    module = LatentODEModule(seeded(lambda: LatentODE(1, 2, 3, "rnn", 4, (4,), (4,))), n_draws=2)
    data = PeriodicDataModule(
        25, n_points=6, n_observed=3, val_size=4, batch_size=4, num_workers=num_workers
    )
    module._noise_seed = 0  # not the initial seed of this process
    seen = Seen()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_train_batches=limit,
        callbacks=[
            seen,
            SteerCallback(b="auto", seed=0),
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, seen.batches


def state(module):
    optimizer = module.trainer.optimizers[0].state_dict()["state"]
    moments = [value for part in optimizer.values() for value in part.values()]
    return [*module.state_dict().values(), *map(torch.as_tensor, moments)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, *run(folder)


@pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES))
def test_a_resume_after_any_batch(unbroken, tmp_path, step):
    folder, module, batches = unbroken
    assert len(batches) == EPOCHS * BATCHES
    resumed, rest = run(tmp_path, folder / f"step={step}.ckpt")
    assert rest == batches[step:]
    assert all(torch.equal(a, b) for a, b in zip(state(resumed), state(module), strict=True))


class Copies(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``, by number."""

    n = 0

    def _save(self, trainer):
        super()._save(trainer)
        self.n += 1
        if trainer.is_global_zero:
            shutil.copy(self.path, self.path.with_name(f"{self.n}.ckpt"))


class Log(Callback):
    """What is logged after each training batch and each validation, but for means over epochs."""

    def __init__(self):
        self.logged = []

    def keep(self, trainer, when):
        found = {k: v.item() for k, v in trainer.callback_metrics.items() if "_epoch" not in k}
        # In the first batches of a resumed run nothing is validated yet.
        found = {k: v for k, v in found.items() if k.startswith("val/") == (when == "val")}
        self.logged.append((when, trainer.global_step, found))

    def on_train_batch_end(self, trainer, *_):
        self.keep(trainer, "train")

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.keep(trainer, "val")


def run_task(case, folder, ckpt_path=None, *callbacks, **settings):
    """Train a task with all that draws and counts; gives its state, logs and checkpoints."""
    data, module, log = case.data(), case.build(), Log()
    data.batch_size = 2
    copies = Copies(1, folder)
    callbacks = [
        SteerCallback("auto", seed=0),
        NFEMonitor(),
        SolverGuard("skip"),
        *callbacks,
        log,
        copies,
    ]
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_train_batches": 3,
        "val_check_interval": 2,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO()],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = Trainer(**{**defaults, **settings})
    torch.manual_seed(0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return state(module), log.logged, copies.n


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_task_goes_on_from_every_checkpoint(name, tmp_path):
    """Weights, moments, end times, noise, evaluations, metrics; after steps and after checks."""
    expected, logged, n = run_task(CASES[name], tmp_path)
    log = [("train", 1), ("train", 2), ("val", 2), ("train", 3)]
    log += [(when, step + 3) for when, step in log]
    assert [(when, step) for when, step, _ in logged] == log
    steps = [1, 2, 3, 3, 4, 5, 6, 6]  # after a step, a check, a step, an epoch
    assert n == len(steps)
    for i, step in enumerate(steps, start=1):
        found, rest, _ = run_task(CASES[name], tmp_path / str(i), tmp_path / f"{i}.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), i
        assert rest == logged[len(logged) - len(rest) :], i
        assert len(rest) == sum(at > step for _, at in log), i


class Halving:
    """A schedule that counts epochs, as a config gives it."""

    def __call__(self, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def scheduled():
    """A flow with noise in its loss and a learning rate that falls with the epochs."""
    case = CASES["image flow"]
    return Case(
        case.module, case.objects, {**case.plain, "lr_scheduler": Halving()}, case.data, {}
    )


# Three batches make an epoch. `max_steps` ends in mid-epoch; checks may cross epochs.
SCHEDULES = {
    "epochs": {"max_epochs": 3, "val_check_interval": 1.0},
    "checks in mid-epoch": {"max_epochs": 2},
    "every other epoch": {
        "max_epochs": 4, "val_check_interval": 1.0, "check_val_every_n_epoch": 2,
    },
    "steps": {"max_epochs": -1, "max_steps": 7},
    "checks across epochs": {
        "max_epochs": -1, "max_steps": 8, "val_check_interval": 4, "check_val_every_n_epoch": None,
    },
    "steps and epochs": {"max_epochs": 3, "max_steps": 7, "val_check_interval": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_from_every_checkpoint(name, tmp_path):
    settings = SCHEDULES[name]
    expected, logged, n = run_task(scheduled(), tmp_path, **settings)
    assert n >= 6
    for i in range(1, n):
        path = tmp_path / f"{i}.ckpt"
        found, rest, _ = run_task(scheduled(), tmp_path / str(i), path, **settings)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), i
        assert rest == logged[len(logged) - len(rest) :], i


@pytest.mark.parametrize("steps", [2, 3, 4, 6])
def test_a_run_that_reached_max_steps_goes_on_to_more(steps, tmp_path):
    settings = SCHEDULES["checks across epochs"]
    expected, logged, _ = run_task(scheduled(), tmp_path / "whole", **settings)
    run_task(scheduled(), tmp_path, **{**settings, "max_steps": steps})
    found, rest, _ = run_task(scheduled(), tmp_path / "more", tmp_path / "last.ckpt", **settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert rest == [entry for entry in logged if entry[1] > steps]


def test_a_resume_with_workers(unbroken, tmp_path):
    folder, module, batches = unbroken
    resumed, rest = run(tmp_path, folder / "step=2.ckpt", num_workers=2)
    assert rest == batches[2:]
    assert all(torch.equal(a, b) for a, b in zip(state(resumed), state(module), strict=True))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resume_of_epochs_that_are_cut_short(tmp_path, step):
    module, batches = run(tmp_path, limit=2)
    assert len(batches) == 2 * EPOCHS
    resumed, rest = run(tmp_path / "resumed", tmp_path / f"step={step}.ckpt", limit=2)
    assert rest == batches[step:]
    assert all(torch.equal(a, b) for a, b in zip(state(resumed), state(module), strict=True))


def test_a_run_that_is_killed_goes_on(unbroken, tmp_path):
    _, module, batches = unbroken
    code = f"""
import os, signal
from pathlib import Path
from tests import test_resume

class Kill(test_resume.Seen):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

test_resume.Seen = Kill
test_resume.run(Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed, rest = run(tmp_path / "resumed", tmp_path / "step=3.ckpt")
    assert rest == batches[3:]
    assert all(torch.equal(a, b) for a, b in zip(state(resumed), state(module), strict=True))


def test_a_position_of_another_epoch_is_not_taken():
    loader = ResumableLoader([1, 2, 3], batch_size=1)
    loader.load_state_dict({"epoch": 7, "batches": 2})
    assert len(list(loader)) == 3


def test_a_position_at_the_end_of_an_epoch_does_not_skip_the_next():
    loader = ResumableLoader([1, 2, 3], batch_size=1)
    assert len(list(loader)) == 3
    again = ResumableLoader([1, 2, 3], batch_size=1)
    again.load_state_dict(loader.state_dict())
    assert len(list(again)) == 3
