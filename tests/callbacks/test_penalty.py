"""PenaltyCallback: what it adds to the loss, and nothing else."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch

from steer_lightning import PenaltyCallback, penalize, penalty
from steer_lightning.guard import SolverGuard
from steer_lightning.penalties import Acceleration, KineticEnergy, LocalError
from steer_lightning.utils.schedule import Schedule
from tests.callbacks.kinds import both
from tests.helpers.models import (
    ForeignModel,
    OwnModel,
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import Log, weights


def train(model, *callbacks, n=8, **settings):
    tiny_trainer(*callbacks, **settings).fit(model, tiny_loader(n), tiny_loader())
    return model


@both
def test_the_loss_of_a_step_is_that_of_plain_pytorch(model_class, where):
    penalties = [KineticEnergy(0.5), Acceleration(2.0)]
    log = Log()
    found = train(seeded(model_class), PenaltyCallback(*penalties, seed=3, **where), log)
    model = seeded(model_class)
    optimizer, losses = model.configure_optimizers(), []
    for step, batch in enumerate(tiny_loader()):
        with penalize(model, penalties, step=step, seed=3, **where):
            loss = model.loss(batch)
            loss = loss + penalty(model)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(weights(found), weights(model))
    assert log.losses == losses
    assert log.train[0]["penalty/kinetic_energy"] > 0.0
    assert log.train[0]["penalty/acceleration_weight"] == 2.0


def test_the_value_of_a_closure_that_is_called_again_is_not_a_sum():
    class Quasi(OwnModel):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.0, max_iter=3, tolerance_grad=0.0)

    logs = []
    for model_class in (OwnModel, Quasi):
        logs.append(Log())
        train(seeded(model_class), PenaltyCallback(KineticEnergy(0.5), seed=3), logs[-1], n=4)
    once, again = (log.train[0]["penalty/kinetic_energy"] for log in logs)
    assert again == pytest.approx(once)


@both
def test_weights_of_zero_are_bit_for_bit_no_callback_and_so_is_evaluation(model_class, where):
    plain = train(seeded(model_class))
    off = train(seeded(model_class), PenaltyCallback(KineticEnergy(0.0), **where))
    assert torch.equal(weights(plain), weights(off))
    on = seeded(model_class)
    nominal = on(tiny_data())
    train(on, PenaltyCallback(KineticEnergy(1.0), **where), max_epochs=0)
    assert torch.equal(on(tiny_data()), nominal)
    assert not any("training_step" in vars(m) for m in (plain, off, on))


@pytest.mark.parametrize(
    ("penalties", "message"),
    [
        ([LocalError(1.0)], r"local_error=.LocalError\(weight=Schedule.constant\(1\)"),
        ([LocalError(0.5, "one_step")], "local_error=.*'one_step'.*local_error=.*'steps'"),
        ([LocalError(0.5), KineticEnergy(1.0)], "kinetic_energy=.*kinetic_energy=None"),
        ([], "local_error=None; the checkpoint was trained with local_error=.LocalError"),
    ],
)
def test_a_resume_with_other_penalties_says_so(penalties, message):
    before = PenaltyCallback(LocalError(0.5), seed=3).state_dict()
    with pytest.warns(UserWarning, match=f"PenaltyCallback goes on with {message}"):
        PenaltyCallback(*penalties).load_state_dict(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PenaltyCallback(LocalError(0.5)).load_state_dict(before)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_follow_steps_of_the_optimiser(accumulated):
    log = Log()
    callback = PenaltyCallback(KineticEnergy(Schedule(1.0, 0.0, 2)), seed=0)
    train(seeded(OwnModel), callback, log, n=16, accumulate_grad_batches=accumulated)
    expected = [1.0, 0.5, 0.0, 0.0] if accumulated == 1 else [1.0, 1.0, 0.5, 0.5]
    assert [logged["penalty/kinetic_energy_weight"] for logged in log.train] == expected
    values = [logged["penalty/kinetic_energy"] for logged in log.train]
    assert [math.isnan(value) for value in values] == [not weight for weight in expected]


def test_after_the_first_a_step_may_solve_nothing():
    class Alternates(OwnModel):
        def training_step(self, batch, batch_idx):
            parameters = torch.cat([p.flatten() for p in self.parameters()])
            return parameters.square().mean() if batch_idx % 2 else self.loss(batch)

    log = Log()
    train(seeded(Alternates), PenaltyCallback(KineticEnergy(1.0)), log, n=16)
    seen = [not math.isnan(logged["penalty/kinetic_energy"]) for logged in log.train]
    assert seen == [True, False, True, False]


def test_a_list_of_penalties_is_refused():
    with pytest.raises(TypeError, match=r"Write PenaltyCallback\(\*penalties\) for a list"):
        PenaltyCallback([KineticEnergy(1.0)])


def test_a_dict_is_penalised_and_a_step_that_returns_nothing_is_left_alone():
    class Returns(OwnModel):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return None if batch_idx else {"loss": loss, "other": 1}

    log = Log()
    train(seeded(Returns), PenaltyCallback(KineticEnergy(1.0)), log)
    assert log.losses[0] > float(seeded(OwnModel).loss(tiny_data(8)[:4]))
    assert log.losses[1] is None


def test_under_manual_optimisation_the_penalty_is_asked_for():
    class Manual(OwnModel):
        def __init__(self, asks):
            super().__init__()
            self.automatic_optimization = False
            self.asks = asks

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = self.loss(batch)
            self.manual_backward(loss + penalty(self) if self.asks else loss)
            optimizer.step()
            optimizer.zero_grad()

    automatic = train(seeded(OwnModel), PenaltyCallback(KineticEnergy(1.0), seed=0))
    manual = train(seeded(Manual, True), PenaltyCallback(KineticEnergy(1.0), seed=0))
    torch.testing.assert_close(weights(manual), weights(automatic))
    with pytest.raises(
        ValueError,
        match=r"No solve .* in the first training batch with a penalty, .*penalty\(self\) to",
    ):
        train(seeded(Manual, False), PenaltyCallback(KineticEnergy(1.0)))


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_double_precision(gradient):
    callback = PenaltyCallback(KineticEnergy(1.0), Acceleration(1.0))
    model = train(seeded(OwnModel, gradient), callback, precision="64-true")
    assert weights(model).isfinite().all()


def test_averaged_weights_and_a_guard_go_with_it():
    callbacks = [PenaltyCallback(KineticEnergy(1.0)), SolverGuard("skip")]
    callbacks.append(pl.callbacks.EMAWeightAveraging(decay=0.5))
    assert weights(train(seeded(OwnModel), *callbacks)).isfinite().all()


def test_what_cannot_be_had_is_refused_at_the_start_of_fit():
    model = seeded(ForeignModel)
    with pytest.raises(ValueError, match=r"has none. Name the modules"):
        train(model, PenaltyCallback(KineticEnergy(1.0)))
    assert model.ends == []


def test_a_weight_that_begins_at_zero_is_looked_for_later():
    class Solves(OwnModel):
        def training_step(self, batch, batch_idx):
            return sum(p.square().sum() for p in self.parameters())

    with pytest.raises(ValueError, match=r"No solve of .* in the first training batch with a pen"):
        train(seeded(Solves), PenaltyCallback(KineticEnergy(Schedule(0.0, 1.0, 1))))
