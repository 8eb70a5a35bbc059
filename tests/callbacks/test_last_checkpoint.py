"""The newest state on the disk; that it goes on exactly is in tests/test_resume.py."""

import signal

import fsspec
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from steer_lightning.callbacks import LastCheckpoint, last_checkpoint
from tests.helpers.models import OwnModel, seeded, tiny_loader, tiny_trainer


class Worse(OwnModel):
    """Validates to a number that only grows, so that the first checkpoint stays the best."""

    def validation_step(self, batch, batch_idx):
        self.log("val", float(self.global_step))


def trainer_in(folder, *callbacks, **settings):
    return tiny_trainer(
        *callbacks, enable_checkpointing=True, default_root_dir=folder, max_epochs=3, **settings
    )


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_last_is_the_newest_and_lies_beside_the_best(tmp_path):
    best = ModelCheckpoint(tmp_path / "both", monitor="val", filename="best")
    trainer = trainer_in(tmp_path, best, LastCheckpoint())
    trainer.fit(seeded(Worse), tiny_loader(), tiny_loader())
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert step_of(tmp_path / "both" / "best.ckpt") == 2
    assert step_of(tmp_path / "both" / "last.ckpt") == 6
    again = trainer_in(tmp_path, ModelCheckpoint(tmp_path / "both"), LastCheckpoint())
    again.fit_loop.max_epochs = 4
    again.fit(seeded(Worse), tiny_loader(), tiny_loader(), ckpt_path="last")
    assert again.global_step == 8


@pytest.mark.parametrize("given", [True, False])
def test_alone_it_finds_a_folder(tmp_path, given):
    own = tmp_path / "mine" if given else None
    left = (own or tmp_path / "checkpoints") / f".last.ckpt.{32 * 'a'}"  # by a kill
    left.parent.mkdir()
    left.touch()
    theirs = left.with_name(f".best.ckpt.{32 * 'b'}")  # another run may be writing it
    theirs.touch()
    trainer_in(tmp_path, LastCheckpoint(dirpath=own)).fit(seeded(OwnModel), tiny_loader())
    assert not left.exists()
    assert theirs.exists()
    folder = own or tmp_path / "checkpoints"
    assert step_of(folder / "last.ckpt") == 6


def test_a_test_after_a_fit_is_of_the_best_where_there_is_one(tmp_path):
    for best, expected in (([ModelCheckpoint(monitor="val", filename="best")], 2), ([], 6)):
        last, model, loaded = LastCheckpoint(), seeded(Worse), []
        model.on_load_checkpoint = lambda found, to=loaded: to.append(found["global_step"])
        trainer = trainer_in(tmp_path / str(expected), *best, last)
        trainer.checkpoint_callbacks.sort(key=lambda callback: callback is not last)
        trainer.callbacks.sort(key=lambda callback: callback is not last)  # in front of others
        trainer.fit(model, tiny_loader(), tiny_loader())
        trainer.validate(dataloaders=tiny_loader(), verbose=False)
        assert loaded == [expected]
        last.best_model_path = "elsewhere.ckpt"  # by a Trainer whose process was another
        assert last.best_model_path == "elsewhere.ckpt"


def test_a_remote_folder_stays_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = LastCheckpoint(dirpath="memory://bucket/run")
    trainer_in(tmp_path, last, max_steps=1).fit(seeded(OwnModel), tiny_loader())
    assert last.path == "memory://bucket/run/last.ckpt"
    assert fsspec.filesystem("memory").exists("/bucket/run/last.ckpt")
    assert not list(tmp_path.rglob("last.ckpt"))


@pytest.mark.parametrize("least", [{"min_epochs": 2}, {"min_steps": 8}])
def test_a_run_that_may_not_stop_yet_is_not_written_after_each_batch(tmp_path, monkeypatch, least):
    class Stops(OwnModel):
        def on_train_batch_start(self, batch, batch_idx):
            self.trainer.should_stop = True

    saved = []
    monkeypatch.setattr(
        LastCheckpoint, "_save", lambda self, trainer: saved.append(trainer.global_step)
    )
    trainer = trainer_in(tmp_path, LastCheckpoint(), **least)
    trainer.fit(seeded(Stops), tiny_loader(16))
    assert trainer.global_step == 8  # two epochs of four
    assert {*saved} == {4, 8}


class Watch(Callback):
    """The step in the file as each batch begins."""

    def __init__(self, path):
        self.path = path
        self.steps = []

    def on_train_batch_start(self, *_):
        self.steps.append(step_of(self.path) if self.path.exists() else None)


@pytest.mark.parametrize(
    ("every", "settings", "expected"),
    [
        (None, {}, [None, None, None, None, 4, 4]),
        (1, {}, [None, 1, 2, 3, 4, 5]),
        (3, {}, [None, None, None, 3, 4, 4]),
        (1, {"accumulate_grad_batches": 2}, [None, None, 1, 1, 2, 2]),
        (None, {"val_check_interval": 2}, [None, None, 2, 2, 4, 4]),
        (2, {"val_check_interval": 3, "check_val_every_n_epoch": None}, [None, None, 2, 3, 4, 4]),
        (1, {"limit_val_batches": 0}, [None, 1, 2, 3, 4, 5]),
        (1, {"check_val_every_n_epoch": 2}, [None, 1, 2, 3, 4, 5]),
        (1, {"val_check_interval": 3, "check_val_every_n_epoch": None}, [None, *range(1, 12)]),
        (1, {"val_check_interval": 2, "check_val_every_n_epoch": 2}, [None, *range(1, 12)]),
    ],
)
def test_when_it_is_written(tmp_path, every, settings, expected):
    """Four batches in an epoch, and as many more as are expected."""
    watch = Watch(tmp_path / "checkpoints" / "last.ckpt")
    trainer = trainer_in(
        tmp_path, watch, LastCheckpoint(every), **{"num_sanity_val_steps": 1, **settings}
    )
    n_steps = len(expected) // settings.get("accumulate_grad_batches", 1)
    trainer.fit_loop.epoch_loop.max_steps = n_steps
    trainer.fit(seeded(OwnModel), tiny_loader(16), tiny_loader())
    assert watch.steps == expected
    assert step_of(watch.path) == trainer.global_step


def test_a_batch_may_take_several_steps(tmp_path):
    class ThreeSteps(OwnModel):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(3):
                self.optimizers().zero_grad()
                self.manual_backward(self.loss(batch))
                self.optimizers().step()

    watch = Watch(tmp_path / "checkpoints" / "last.ckpt")
    trainer = trainer_in(tmp_path, watch, LastCheckpoint(5), limit_val_batches=0)
    trainer.fit(seeded(ThreeSteps), tiny_loader(16))
    assert watch.steps[:5] == [None, None, 6, 6, 12]
    trainer = trainer_in(tmp_path, LastCheckpoint(), max_steps=7, limit_val_batches=0)
    trainer.fit(seeded(ThreeSteps), tiny_loader(16))
    progress = torch.load(watch.path, weights_only=True)["loops"]["fit_loop"]["epoch_progress"]
    assert progress["current"]["processed"] == 0  # it goes on within its first epoch


def test_nothing_is_written_but_in_training(tmp_path):
    model, data = seeded(OwnModel), tiny_loader()
    trainer_in(tmp_path, LastCheckpoint(1), fast_dev_run=True).fit(model, data)
    trainer_in(tmp_path, LastCheckpoint(1)).validate(model, data, verbose=False)
    assert not list(tmp_path.iterdir())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="`every_n_train_steps` to be None or >= 1, but got 0"):
        LastCheckpoint(0)


class Press(Callback):
    """Presses Ctrl-C, or another, as a batch begins."""

    def __init__(self, batch_idx, times=1, number=signal.SIGINT):
        self.batch_idx, self.times, self.number = batch_idx, times, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            for _ in range(self.times):
                signal.raise_signal(self.number)


@pytest.fixture
def default_ctrl_c():
    """Python's own, which a shell has its background ignore, and Lightning what comes after it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("press", "error", "words", "step"),
    [
        (Press(1), SystemExit, ["\nCtrl-C: stopping after", "Stopped. Go on from here with"], 2),
        (Press(1, times=2), SystemExit, ["\nCtrl-C: stopping after"], None),
        (Press(1, number=signal.SIGTERM), SIGTERMException, ["Stopped by SIGTERM. Go on with"], 2),
    ],
    ids=["Ctrl-C", "twice", "SIGTERM"],
)
def test_a_run_that_is_stopped_says_where_it_goes_on(
    tmp_path, press, error, words, step, monkeypatch, default_ctrl_c
):
    said, path = [], tmp_path / "checkpoints" / "last.ckpt"
    monkeypatch.setattr(last_checkpoint, "rank_zero_info", said.append)
    trainer = trainer_in(tmp_path, press, LastCheckpoint())
    with pytest.raises(error):
        trainer.fit(seeded(OwnModel), tiny_loader(16), tiny_loader())
    assert all(line.startswith(begins) for line, begins in zip(said, words, strict=True))
    assert (step_of(path) if path.exists() else None) == step
    assert said[-1].endswith(f" --ckpt_path {path}") is (step is not None)


@pytest.mark.parametrize("validates", [False, True])
def test_it_is_not_written_where_gradients_are_accumulated(tmp_path, validates, default_ctrl_c):
    """No checkpoint holds them; a run that is interrupted there stops at the window's end."""
    watch = Watch(tmp_path / "checkpoints" / "last.ckpt")
    settings = {"accumulate_grad_batches": 2, "num_sanity_val_steps": 0}
    val_loader = None
    if validates:
        settings["val_check_interval"], val_loader = 1, tiny_loader()
    trainer = trainer_in(tmp_path, watch, Press(0), LastCheckpoint(), **settings)
    with pytest.raises(SystemExit):
        trainer.fit(seeded(OwnModel), tiny_loader(16), val_loader)
    assert watch.steps == [None, None]
    checkpoint = torch.load(watch.path, weights_only=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert (checkpoint["global_step"], progress["processed"]) == (1, 2)


def test_ctrl_c_is_python_s_own_again_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer_in(tmp_path, LastCheckpoint()).fit(seeded(OwnModel), tiny_loader())
    assert signal.getsignal(signal.SIGINT) is before
