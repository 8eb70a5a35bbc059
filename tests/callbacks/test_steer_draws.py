"""The draws of SteerCallback: what they depend on, and what they never touch."""

import copy

import numpy as np
import pytest
import torch

from steer_lightning import PenaltyCallback, SteerCallback
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.penalties import KineticEnergy
from steer_lightning.utils.schedule import Schedule
from steer_lightning.utils.seeding import stream_key
from tests.callbacks.kinds import both
from tests.helpers.models import (
    OwnModel,
    seeded,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import weights


def ends_of_fit(model_class=OwnModel, *, epochs=2, **settings):
    model = seeded(model_class)
    tiny_trainer(SteerCallback(0.5, **settings), max_epochs=epochs).fit(model, tiny_loader())
    return model.ends


def end_by_hand(*key, distribution="uniform"):
    draw = EndTimeDraw(0.5, distribution=distribution, key=stream_key("end_time", *key))
    gap = torch.tensor([1.0], dtype=torch.float64)
    return 1.0 + float(draw.offsets(gap, None, clip=False))


@both
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_draw_is_a_function_of_seed_count_and_path(model_class, where, distribution):
    path, settings = "func" if where else "block.horizon", {"distribution": distribution, **where}
    expected = [end_by_hand(11, step, path, 0, distribution=distribution) for step in range(4)]
    assert ends_of_fit(model_class, seed=11, **settings) == pytest.approx(expected, abs=1e-5)
    assert ends_of_fit(model_class, seed=12, **settings) != pytest.approx(expected, abs=1e-3)


@both
def test_the_global_stream_neither_moves_the_draws_nor_is_moved_by_them(model_class, where):
    class Noisy(model_class):
        def training_step(self, batch, batch_idx):
            self.noise = [*getattr(self, "noise", []), float(torch.rand(()))]
            return self.loss(batch)

    def fit(*callbacks):
        model = seeded(Noisy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            tiny_trainer(*callbacks, max_epochs=2).fit(model, tiny_loader())
            return model, torch.get_rng_state()

    plain, state_without = fit()
    steered, state_with = fit(SteerCallback(0.5, seed=0, **where))
    assert steered.noise == plain.noise
    assert torch.equal(state_with, state_without)
    assert steered.ends == ends_of_fit(model_class, seed=0, **where)  # with other noise about


def test_without_any_seed_torchs_initial_seed_decides_and_is_kept():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        torch.rand(5)
        callback, model = SteerCallback(0.5), seeded(OwnModel)
        tiny_trainer(callback, max_epochs=2).fit(model, tiny_loader())
    assert (callback.seed, callback.state_dict()["step"]) == (11, 4)
    assert model.ends == ends_of_fit(seed=11)


@both
def test_a_resumed_run_continues_the_draws(model_class, where, tmp_path):
    def train(epochs, callback, ckpt_path=None):
        decay = Schedule(1.0, 0.1, 6, "exponential")
        penalty = PenaltyCallback(KineticEnergy(decay), seed=callback.seed, **where)
        model, trainer = seeded(model_class), tiny_trainer(callback, penalty, max_epochs=epochs)
        trainer.fit(model, tiny_loader(), ckpt_path=ckpt_path)
        return model

    through = train(4, SteerCallback(0.5, seed=3, **where))
    first, path = train(2, SteerCallback(0.5, seed=3, **where)), tmp_path / "half.ckpt"
    first.trainer.save_checkpoint(path)
    callback = SteerCallback(0.5, **where)  # asks for no seed: the checkpoint has it
    second = train(4, callback, path)
    assert first.ends + second.ends == through.ends
    state = callback.state_dict()
    assert (state["seed"], state["step"]) == (3, 8)
    assert state["spans"] == ({"func": (0.0, 1.0)} if where else {})
    assert torch.equal(weights(second), weights(through))


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({}, []),
        ({"seed": 3}, []),
        ({"seed": 5}, ["seed of the checkpoint, 3, and not with seed=5"]),
        ({"b": 0.2}, ["goes on with b=0.2; the checkpoint was trained with b=0.5"]),
        ({"b": "auto", "scope": "rank"}, ["on with b='auto'; the", "trained with scope='batch'"]),
    ],
)
def test_a_resume_says_which_settings_have_changed_and_keeps_the_seed(asked, messages, recwarn):
    callback = SteerCallback(**{"b": 0.5, **asked})
    callback.load_state_dict({**SteerCallback(0.5, seed=3).state_dict(), "step": 4})
    assert len(recwarn.list) == len(messages)
    for warning, message in zip(recwarn.list, messages, strict=True):
        assert message in str(warning.message)
    assert (callback.state_dict()["seed"], callback.state_dict()["step"]) == (3, 4)


def test_a_second_run_starts_anew_by_the_global_seed_and_a_longer_fit_goes_on(monkeypatch):
    callback = SteerCallback(0.5)
    for seed in (11, 12):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        model, trainer = seeded(OwnModel), tiny_trainer(callback)
        trainer.fit(model, tiny_loader())
        assert model.ends == ends_of_fit(seed=seed)[:2]
    trainer.fit_loop.max_epochs = 2  # of one epoch before
    trainer.fit(model, tiny_loader())
    assert callback.state_dict()["step"] == 4


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path):
    where = {"t0": np.float32(0.0), "t1": np.int64(1), "vector_fields": [""]}
    steer = SteerCallback(np.linspace(0.1, 0.5, 3)[1], seed=np.int64(3), **where)
    torch.save(steer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["seed"], state["settings"]["t1"]) == (3, 1.0)
    assert state["settings"]["b"] == pytest.approx(0.3)


def test_its_key_is_what_is_steered():
    a, b = SteerCallback(0.5, ["a.func"]), SteerCallback(0.5, ["b.func"])
    assert a.state_key != b.state_key
    assert a.state_key == SteerCallback(0.1, ["a.func"], seed=9).state_key
    assert copy.deepcopy(a).state_key == a.state_key


@pytest.mark.parametrize("accumulated", [1, 2])
def test_b_follows_a_schedule_of_optimiser_steps(accumulated):
    ends = []
    for b in (0.5, Schedule(0.5, 0.0, 2)):
        model = seeded(OwnModel)
        trainer = tiny_trainer(
            SteerCallback(b, seed=0), accumulate_grad_batches=accumulated, max_epochs=2
        )
        trainer.fit(model, tiny_loader())
        ends.append(model.ends)
    for batch, (full, decayed) in enumerate(zip(*ends, strict=True)):
        share = max(0.0, 1.0 - (batch // accumulated) / 2)
        assert decayed - 1.0 == pytest.approx(share * (full - 1.0), abs=1e-5)


def test_the_seed_is_agreed_from_rank_zero(monkeypatch):
    callback, model = SteerCallback(0.5), seeded(OwnModel)
    trainer = tiny_trainer(callback)
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda obj, src=0: 99)
    trainer.fit(model, tiny_loader())
    assert callback.seed == 99
