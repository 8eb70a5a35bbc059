"""SteerCallback in a Trainer: what it leaves alone, and what it leaves behind."""

import pytest
import pytorch_lightning as pl
import torch

from steer_lightning import SteerCallback
from tests.callbacks.kinds import both
from tests.helpers.models import (
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import Log, weights


def is_nominal(model):
    """Whether the model computes, bit for bit, what a fresh one with its weights does."""
    fresh = seeded(type(model))
    fresh.load_state_dict(model.state_dict())
    return torch.equal(model(tiny_data()), fresh(tiny_data()))


# 1. Evaluation is that of the same model without the callback, to the last bit.


def look(name):
    """A hook that looks at the model."""

    def hook(self, trainer, pl_module, *_):
        self.nominal.setdefault(name, []).append(is_nominal(pl_module))

    return hook


class EvaluatedEverywhere(pl.Callback):
    """Whether the model was nominal, wherever evaluation happens."""

    def __init__(self):
        self.nominal = {}

    on_sanity_check_start = look("sanity")
    on_validation_batch_end = look("validate")
    on_test_batch_end = look("test")
    on_predict_batch_end = look("predict")
    on_train_epoch_end = look("epoch end")
    on_train_batch_end = look("batch end")
    on_fit_end = look("fit end")


@both
def test_evaluation_within_and_after_fit_is_bit_for_bit_nominal(model_class, where):
    model, look = seeded(model_class), EvaluatedEverywhere()
    trainer = tiny_trainer(SteerCallback(0.5, seed=0, **where), look, val_check_interval=1)
    trainer.fit(model, tiny_loader(), tiny_loader())
    assert all(abs(end - 1.0) > 1e-3 for end in model.ends)
    assert look.nominal == {
        "sanity": [True],
        "validate": [True] * 6,  # two of the sanity check, two after each training batch
        "batch end": [True] * 2,
        "epoch end": [True],
        "fit end": [True],
    }
    look.nominal.clear()
    model.evaluated.clear()
    trainer.validate(model, tiny_loader(), verbose=False)
    trainer.test(model, tiny_loader(), verbose=False)
    predicted = torch.cat(trainer.predict(model, tiny_loader()))
    fresh = seeded(model_class)
    fresh.load_state_dict(model.state_dict())
    expected = torch.cat([fresh(batch) for batch in tiny_loader()])
    assert torch.equal(predicted, expected)
    assert torch.equal(torch.cat(model.evaluated), torch.cat([expected] * 2))
    assert look.nominal == {name: [True] * 2 for name in ("validate", "test", "predict")}


@both
@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()], ids=repr)
def test_after_an_exception_in_a_training_step_the_model_is_nominal(model_class, where, error):
    class Breaks(model_class):
        def training_step(self, batch, batch_idx):
            self.loss(batch)
            assert not is_nominal(self)
            raise error

    model = seeded(Breaks)
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        tiny_trainer(SteerCallback(0.5, seed=0, **where)).fit(model, tiny_loader())
    assert len(model.ends) == 1
    assert is_nominal(model)
    # Another callback finds nobody's claim.
    model.__class__ = model_class
    tiny_trainer(SteerCallback(0.5, seed=0, **where)).fit(model, tiny_loader())
    assert len(model.ends) == 3


@both
def test_after_a_skipped_step_evaluation_is_nominal(model_class, where):
    class Skips(model_class):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else None

    model, look = seeded(Skips), EvaluatedEverywhere()
    trainer = tiny_trainer(SteerCallback(0.5, seed=0, **where), look, max_epochs=2)
    trainer.fit(model, tiny_loader())
    assert len(model.ends) == 2
    assert look.nominal == {
        "batch end": [True] * 2,
        "epoch end": [True] * 2,
        "fit end": [True],
    }


@both
def test_nothing_is_left_behind(model_class, where):
    model = seeded(model_class)
    trainer = tiny_trainer(SteerCallback(0.5, **where))
    for fits in range(1, 4):  # the same callback, again and again
        trainer.fit_loop.epoch_progress.reset()
        trainer.fit_loop.max_epochs = fits
        trainer.fit(model, tiny_loader())
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
    assert len({round(end, 6) for end in model.ends}) == len(model.ends) >= 6


# 2. b = 0 is no callback, to the last bit.


@both
def test_b_zero_trains_bit_for_bit_like_no_callback_and_b_above_does_not(model_class, where):
    def train(*callbacks):
        model = seeded(model_class)
        tiny_trainer(*callbacks, max_epochs=2).fit(model, tiny_loader(), tiny_loader())
        return model

    plain, zero = train(), train(SteerCallback(0.0, **where))
    assert torch.equal(weights(plain), weights(zero))
    assert plain.ends == zero.ends
    assert torch.equal(torch.cat(plain.evaluated), torch.cat(zero.evaluated))
    steered = train(SteerCallback(0.5, seed=0, **where))
    assert not torch.equal(weights(plain), weights(steered))


# 3. What is in force is logged; it is never in buffers, nor in checkpoints of the model.


@both
def test_the_end_time_is_logged_and_not_in_buffers_or_state_dict(model_class, where, monkeypatch):
    class Looks(model_class):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            assert not list(self.buffers())
            assert set(self.state_dict()) == {name for name, _ in self.named_parameters()}
            return loss

    model, log, tables = seeded(Looks), Log(), []
    monkeypatch.setattr("steer_lightning.callbacks.steer.rank_zero_info", tables.append)
    tiny_trainer(SteerCallback(0.5, seed=0, **where), log).fit(model, tiny_loader())
    assert len(tables) == 1 + bool(where)
    assert not where or "the end of the solves of func from 0 to 1" in tables[1]
    name = "func" if where else "block.horizon"
    assert tables[0].startswith("STEER moves these end times in training:")
    assert name in tables[0]
    assert ("that of the first solve" if where else "[0, 1]") in tables[0]
    logged = [metrics[f"steer/{name}/end_time"] for metrics in log.train]
    assert len(logged) == 2
    assert logged == pytest.approx(model.ends, abs=1e-5)
