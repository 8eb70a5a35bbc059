"""A run that stops anywhere and goes on ends where an unbroken one does, bit for bit."""

import shutil

import pytest
import torch
from pytorch_lightning import Callback

from datamodules.resumable_loader import ResumableLoader
from steer_lightning import NFEMonitor, SteerCallback
from steer_lightning.callbacks import LastCheckpoint
from steer_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from steer_lightning.guard import SolverGuard
from tests.helpers.models import tiny_trainer
from tests.modules.cases import CASES, Case


def state(module):
    optimizer = module.trainer.optimizers[0].state_dict()["state"]
    moments = [value for part in optimizer.values() for value in part.values()]
    return [*module.state_dict().values(), *map(torch.as_tensor, moments)]


class Copies(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``, by number."""

    n = 0

    def _save(self, trainer):
        super()._save(trainer)
        self.n += 1
        if trainer.is_global_zero:
            shutil.copy(self.path, self.path.with_name(f"{self.n}.ckpt"))


def logged_at(trainer):
    """The step that loggers are told."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


class Log(Callback):
    """What is logged after each training batch and each validation, but for means over epochs."""

    def __init__(self):
        self.logged = []

    def keep(self, trainer, when):
        found = {k: v.item() for k, v in trainer.callback_metrics.items() if "_epoch" not in k}
        # In the first batches of a resumed run nothing is validated yet.
        found = {k: v for k, v in found.items() if k.startswith("val/") == (when == "val")}
        self.logged.append((when, trainer.global_step, found, logged_at(trainer)))

    def on_train_batch_end(self, trainer, *_):
        self.keep(trainer, "train")

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.keep(trainer, "val")


def run_task(case, folder, ckpt_path=None, *callbacks, num_workers=0, **settings):
    """Train a task with all that draws and counts; gives its state, logs and checkpoints."""
    data, module, log = case.data(), case.build(), Log()
    data.batch_size, data.num_workers = 2, num_workers
    copies = Copies(1, folder)
    callbacks = [SteerCallback("auto", seed=0), NFEMonitor(), SolverGuard("skip"), *callbacks, log]
    defaults = {
        "max_epochs": 2, "limit_train_batches": 3, "val_check_interval": 2, "limit_val_batches": 2,
        "num_sanity_val_steps": 0, "enable_checkpointing": True, "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
    }  # fmt: skip
    trainer = tiny_trainer(*callbacks, copies, **{**defaults, **settings})
    torch.manual_seed(0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return state(module), log.logged, copies.n


def goes_on(run, whole):
    """Check that a run ends as another does and logs the same; gives what it has logged."""
    (found, rest, _), (expected, logged, _) = run, whole
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert rest == logged[len(logged) - len(rest) :]
    return rest


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_task_goes_on_from_its_checkpoints(name, tmp_path):
    """Weights, moments, end times, noise, evaluations, metrics; after steps and after checks."""
    whole = _, logged, n = run_task(CASES[name], tmp_path)
    log = [("train", 1), ("train", 2), ("val", 2), ("train", 3)]
    log += [(when, step + 3) for when, step in log]
    assert [(when, step) for when, step, *_ in logged] == log
    steps = [1, 2, 3, 3, 4, 5, 6, 6]  # after a step, a check, a step, an epoch
    assert n == len(steps)
    for i, step in enumerate(steps, start=1):
        if i in (5, 6, 7):  # as in the first epoch; the test below asks for all
            continue
        run = run_task(CASES[name], tmp_path / str(i), tmp_path / f"{i}.ckpt")
        assert len(goes_on(run, whole)) == sum(at > step for _, at in log), i


def halving(optimizer):
    """A schedule that counts epochs, as a config gives it."""
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def cycle(optimizer):
    """A schedule that counts steps, and knows how many there are."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 9)


def scheduled(schedule=halving, interval="epoch"):
    """A flow with noise in its loss and a learning rate that falls with the epochs."""
    case = CASES["image flow"]
    plain = {**case.plain, "lr_scheduler": schedule, "lr_interval": interval}
    return Case(case.module, case.objects, plain, case.data, {})


# Three batches make an epoch. `max_steps` ends in mid-epoch; checks may cross epochs.
SCHEDULES = {
    "epochs": {"max_epochs": 3, "val_check_interval": 1.0},
    "every other epoch": {
        "max_epochs": 3, "val_check_interval": 1.0, "check_val_every_n_epoch": 2,
    },
    "steps": {"max_epochs": -1, "max_steps": 7},
    "checks across epochs": {
        "max_epochs": -1, "max_steps": 8, "val_check_interval": 4, "check_val_every_n_epoch": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_from_every_checkpoint(name, tmp_path):
    settings = SCHEDULES[name]
    whole = *_, n = run_task(scheduled(), tmp_path, **settings)
    assert n >= 6
    for i in range(1, n):
        path = tmp_path / f"{i}.ckpt"
        goes_on(run_task(scheduled(), tmp_path / str(i), path, **settings), whole)


def test_a_schedule_that_knows_all_steps_leaves_loaders_their_place(tmp_path):
    case, settings = scheduled(cycle, "step"), SCHEDULES["epochs"]
    whole = run_task(case, tmp_path, **settings)
    for i in (1, 2, 5):
        run = run_task(case, tmp_path / str(i), tmp_path / f"{i}.ckpt", **settings)
        goes_on(run, whole)


class Stops(Callback):
    """Ends a training, in mid-epoch."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 2


def test_a_training_that_was_stopped_goes_on(tmp_path):
    settings = SCHEDULES["epochs"]
    whole = run_task(scheduled(), tmp_path / "whole", **settings)
    run_task(scheduled(), tmp_path, None, Stops(), **settings)
    rest = goes_on(run_task(scheduled(), tmp_path, tmp_path / "last.ckpt", **settings), whole)
    assert len(rest) == 10


class Inside(Callback):
    """Saves within a batch, as Slurm's signal makes Lightning do."""

    def __init__(self, epoch, batch_idx, path):
        self.at, self.path, self.batch_idx = (epoch, batch_idx), path, -1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch_idx = batch_idx

    def on_after_backward(self, trainer, pl_module):
        if (trainer.current_epoch, self.batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 2)])
def test_a_checkpoint_within_a_batch_repeats_the_batch(at, tmp_path):
    path, settings = tmp_path / "inside.ckpt", SCHEDULES["epochs"]
    whole = run_task(scheduled(), tmp_path, None, Inside(*at, path), **settings)
    run = *_, n = run_task(scheduled(), tmp_path / "rest", path, **settings)
    assert len(goes_on(run, whole)) == 12 - 4 * at[0] - at[1]
    again = tmp_path / "rest" / f"{n // 2}.ckpt"  # a second time
    goes_on(run_task(scheduled(), tmp_path / "again", again, **settings), whole)


def test_a_checkpoint_after_an_epoch_that_was_cut_short_goes_on(tmp_path):
    case, settings = scheduled(), SCHEDULES["epochs"]

    class Cut(case.module):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            return -1 if (self.current_epoch, batch_idx) == (0, 1) else None

    case.module = Cut
    whole = run_task(case, tmp_path, **settings)
    for i in (2, 3, 4):
        run = run_task(case, tmp_path / str(i), tmp_path / f"{i}.ckpt", **settings)
        goes_on(run, whole)


def test_a_run_that_reached_max_steps_goes_on_to_more(tmp_path):
    settings = SCHEDULES["checks across epochs"]
    whole = run_task(scheduled(), tmp_path / "whole", **settings)
    for steps in (2, 3, 4, 6):
        folder = tmp_path / str(steps)
        run_task(scheduled(), folder, **{**settings, "max_steps": steps})
        more = run_task(scheduled(), folder / "more", folder / "last.ckpt", **settings)
        assert goes_on(more, whole) == [entry for entry in whole[1] if entry[1] > steps]


def test_a_run_of_so_many_epochs_goes_on_for_so_many_steps(tmp_path):
    settings = SCHEDULES["epochs"]
    whole = run_task(scheduled(), tmp_path / "whole", **{**settings, "max_epochs": 4})
    run_task(scheduled(), tmp_path / "first", **{**settings, "max_epochs": 2})
    steps = {**settings, "max_epochs": -1, "max_steps": 12}
    goes_on(run_task(scheduled(), tmp_path, tmp_path / "first" / "last.ckpt", **steps), whole)


def test_a_resume_with_workers(tmp_path):
    whole = run_task(CASES["latent ode"], tmp_path)
    path = tmp_path / "2.ckpt"
    goes_on(run_task(CASES["latent ode"], tmp_path / "rest", path, num_workers=2), whole)


@pytest.mark.parametrize(
    "position", [{"epoch": 7, "batches": 2}, None], ids=["of another epoch", "at the end"]
)
def test_a_position_that_is_no_place_to_go_on_from_skips_nothing(position):
    loader, again = (ResumableLoader([1, 2, 3], batch_size=1) for _ in range(2))
    assert len(list(loader)) == 3
    again.load_state_dict(position or loader.state_dict())
    assert len(list(again)) == 3
