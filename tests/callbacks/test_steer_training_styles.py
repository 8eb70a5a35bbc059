"""Ways of training: all of them work, with the end time that the step drew."""

import pytest
import pytorch_lightning as pl
import torch
from torchdiffeq import odeint

from steer_lightning import SteerCallback
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField
from tests.helpers.models import (
    ClockField,
    ForeignModel,
    OwnModel,
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import weights

both = pytest.mark.parametrize(
    ("model_class", "adjoint", "where"),
    [(OwnModel, "adjoint", {}), (ForeignModel, True, {"vector_fields": ["func"]})],
    ids=["own", "foreign"],
)


def gradient_by_hand(batches, ends, w, scale):
    """Of the same loss, through plain solves to the given ends."""
    field = ClockField()
    with torch.no_grad():
        field.w.copy_(w)
    for batch, end in zip(batches, ends, strict=True):
        y = odeint(field, batch, torch.tensor([0.0, end]), rtol=1e-6, atol=1e-6)[-1]
        (scale * (y[:, 0] - 1.0).square().mean()).backward()
    return field.w.grad


@both
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_has_the_gradient_of_its_solves_to_T(model_class, adjoint, where, accumulated):
    """With accumulation each micro-batch has a draw of its own."""
    model = seeded(model_class, adjoint)
    before, batches = weights(model), tiny_data().split(4)[:accumulated]
    callback = SteerCallback(0.5, seed=0, **where)
    trainer = tiny_trainer(callback, accumulate_grad_batches=accumulated, max_steps=1)
    trainer.fit(model, tiny_loader())
    assert len({round(end, 5) for end in model.ends}) == accumulated
    expected = gradient_by_hand(batches, model.ends, before, 1.0 / accumulated)
    found = (before - weights(model)) / 0.1
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    nominal = gradient_by_hand(batches, [1.0] * accumulated, before, 1.0 / accumulated)
    assert not torch.allclose(found, nominal, rtol=1e-2, atol=1e-3)


@both
def test_manual_optimisation_with_two_optimisers(model_class, adjoint, where):
    class Manual(model_class):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch) + self.bias.square())
                optimizer.step()

        def configure_optimizers(self):
            field = [p for p in self.parameters() if p is not self.bias]
            return torch.optim.SGD(field, lr=0.1), torch.optim.Adam([self.bias])

    model = seeded(Manual, adjoint)
    tiny_trainer(SteerCallback(0.5, seed=0, **where)).fit(model, tiny_loader())
    first, again, second, once_more = model.ends
    assert first == pytest.approx(again, abs=1e-5)  # one draw for all of a step
    assert second == pytest.approx(once_more, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-3)


@both
def test_the_closures_of_a_step_share_its_end_time(model_class, adjoint, where):
    class Closures(model_class):
        steps = ()

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.steps = (*self.steps, (batch_idx, round(self.ends[-1], 4)))
            return loss

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    model = seeded(Closures, adjoint)
    tiny_trainer(SteerCallback(0.5, seed=0, **where)).fit(model, tiny_loader())
    assert len(model.steps) > 4
    assert len(set(model.steps)) == 2
    assert len({end for _, end in model.steps}) == 2


@both
def test_a_step_that_returns_nothing_is_a_step(model_class, adjoint, where):
    class Skips(model_class):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return loss if batch_idx else None

    model = seeded(Skips, adjoint)
    tiny_trainer(SteerCallback(0.5, seed=0, **where)).fit(model, tiny_loader())
    assert len(set(model.ends)) == 2


@both
def test_mixed_precision(model_class, adjoint, where):
    class HalfField(ClockField):
        """What autocast makes of a network: half precision in the middle of the field."""

        def forward(self, t, y):
            a = y[:, :1] @ self.w[:1].reshape(1, 1)
            assert (a.dtype == torch.bfloat16) == torch.is_autocast_enabled("cpu")
            a = a.float()
            return torch.cat([torch.tanh(a + self.w[1] * t), torch.ones_like(a)], dim=1)

    class Mixed(model_class):
        def __init__(self, *args):
            super().__init__(*args)
            if hasattr(self, "func"):
                self.func = HalfField()
            else:
                self.block.vector_field = HalfField()

    results = {}
    for precision in ("32-true", "bf16-mixed"):
        model = seeded(Mixed, adjoint)
        callback = SteerCallback(0.5, seed=0, **where)
        tiny_trainer(callback, precision=precision, max_epochs=2).fit(model, tiny_loader())
        results[precision] = (model.ends, weights(model))
        assert weights(model).dtype == torch.float32
    (ends, full), (mixed_ends, mixed) = results.values()
    assert mixed_ends == pytest.approx(ends, abs=1e-4)
    torch.testing.assert_close(mixed, full, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [(OwnModel, {}), (OwnModel, {"scope": "sample"}), (ForeignModel, {"vector_fields": ["func"]})],
)
def test_a_solve_in_inference_mode_within_the_step_is_harmless(model_class, settings):
    class Looks(model_class):
        def training_step(self, batch, batch_idx):
            with torch.inference_mode():
                self(batch)
            return self.loss(batch)

    runs = [seeded(Looks), seeded(model_class)]
    for model in runs:
        tiny_trainer(SteerCallback(0.5, seed=0, **settings)).fit(model, tiny_loader())
    assert runs[0].ends == runs[1].ends


def test_the_end_of_a_flow_is_learned_around_its_draws():
    model = CNFModule(CNF(ConcatSquashField(2, (8,)), (2,), learn_t1=True))
    tiny_trainer(SteerCallback(0.5, seed=0)).fit(model, tiny_loader())
    learned = float(model.flow.horizon.learned_t1.detach())
    assert learned != 1.0
    assert model.flow.horizon.in_force() == {"end_time": pytest.approx(learned)}


def test_barebones_training_works():
    model = seeded(OwnModel)
    trainer = pl.Trainer(
        barebones=True, accelerator="cpu", max_epochs=1, callbacks=[SteerCallback(0.5, seed=0)]
    )
    trainer.fit(model, tiny_loader())
    assert all(abs(end - 1.0) > 1e-3 for end in model.ends)
