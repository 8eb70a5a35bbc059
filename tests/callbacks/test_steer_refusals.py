"""Nothing is silent: what SteerCallback cannot do it refuses, with the remedy."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from steer_lightning import SteerCallback
from tests.helpers.models import (
    ClockField,
    ForeignModel,
    OwnModel,
    TinyModule,
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)


def fit(model, *callbacks):
    tiny_trainer(*callbacks).fit(model, tiny_loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"b": -0.5}, "Expected `b` to be 'auto' or finite and >= 0, but got -0.5"),
        (
            {"b": 1.5, "vector_fields": ["func"], "t0": 0.0, "t1": 1.0},
            r"no end time reaches t0, but got b = 1\.5",
        ),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        SteerCallback(**{"b": 0.5, **settings})


@pytest.mark.parametrize(
    ("model_class", "settings", "message"),
    [
        (OwnModel, {"b": 1.0}, r"0 <= b < \|t1 - t0\| = 1, .* but got b = 1"),
        (ForeignModel, {"b": 1.0, "vector_fields": ["func"]}, "but got b = 1"),
        (
            ForeignModel,
            {"vector_fields": ["func"], "scope": "sample"},
            "Expected scope='batch' or 'rank' for the attached vector field 'func'",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_batch(
    model_class, settings, message
):
    model = seeded(model_class)
    with pytest.raises(ValueError, match=message):
        fit(model, SteerCallback(**{"b": 0.5, **settings}))
    assert model.ends == []
    where = {"vector_fields": ["func"]} if model_class is ForeignModel else {}
    fit(model, SteerCallback(0.5, **where))  # the refusal left no claim behind
    assert len(model.ends) == 2


def test_a_learnable_end_of_a_foreign_field_is_refused():
    with pytest.raises(TypeError, match=r"learn_t1=True.*cannot be learned from outside"):
        SteerCallback(0.5, ["func"], t0=0.0, t1=nn.Parameter(torch.tensor(1.0)))


def test_two_callbacks_on_one_horizon_are_refused():
    model = seeded(ForeignModel)
    model.other = ClockField()
    with pytest.raises(
        ValueError,
        match=r"one owner .* 'func', but SteerCallback\(b=0.2\).* SteerCallback\(b=0.5\).* has it",
    ):
        fit(model, SteerCallback(0.5, ["func"]), SteerCallback(0.2, ["other", "func"]))
    assert model.ends == []
    assert not model.func._forward_hooks


def test_a_field_that_is_not_called_is_an_error_after_the_first_batch():
    class Unnamed(ForeignModel):
        """A model that goes around the module its user has named."""

        def forward(self, y0):
            return odeint(self.func.forward, y0, torch.tensor([0.0, 1.0]), method="euler")[-1]

    model = seeded(Unnamed)
    with pytest.raises(ValueError, match="'func' was not called in the first training batch"):
        fit(model, SteerCallback(0.5, ["func"]))
    assert len(model.ends) == 1
    assert not model.func._forward_hooks


def test_a_first_batch_that_is_left_out_says_nothing_of_the_field():
    class LeavesOut(ForeignModel):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) if batch_idx else None

    model = seeded(LeavesOut)
    fit(model, SteerCallback(0.5, ["func"]))
    assert len(model.ends) == 1


def test_hooks_added_after_an_enclosing_model_was_compiled_are_an_error():
    torch._dynamo.reset()

    class Compiled(TinyModule):
        def __init__(self):
            super().__init__()
            self.func = ClockField()
            self.solve = torch.compile(self._solve, backend="eager")

        def _solve(self, y0):
            return y0 + self.func(torch.tensor(0.0), y0)

        def forward(self, y0):
            return self.solve(y0)

    model = seeded(Compiled)
    model(tiny_data(4))
    with pytest.raises(ValueError, match=r"was not called in the first .* compile the field and"):
        fit(model, SteerCallback(0.5, ["func"]))
    torch._dynamo.reset()


def test_a_horizon_that_is_not_solved_is_an_error_after_the_first_batch():
    class Idle(OwnModel):
        def forward(self, y0):
            return y0 + self.block.vector_field(torch.tensor(0.0), y0)

    with pytest.raises(ValueError, match=r"'block.horizon' was not solved in the first training"):
        fit(seeded(Idle), SteerCallback(0.5))


def test_a_validation_pass_does_not_count_as_the_first_training_batch():
    class OnlyValidated(ForeignModel):
        def training_step(self, batch, batch_idx):
            return self.func.w.square().sum()

    with pytest.raises(ValueError, match="was not called in the first training batch"):
        tiny_trainer(SteerCallback(0.5, ["func"])).fit(
            seeded(OnlyValidated), tiny_loader(), tiny_loader()
        )


@pytest.mark.parametrize("adjoint", [True, False])
def test_a_loss_that_is_held_over_has_the_gradient_of_its_own_end_time(adjoint):
    class Manual(ForeignModel):
        held = None

        def __init__(self, late):
            super().__init__(adjoint)
            self.automatic_optimization = False
            self.late = late

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.held, loss = loss, self.held if self.late else loss
            if loss is not None:
                self.manual_backward(loss)

    grads = []
    for late in (False, True):
        model, callback = seeded(Manual, late), SteerCallback(0.5, ["func"], seed=0)
        # The late one leaves out the last of three batches; the other never sees it.
        tiny_trainer(callback, limit_train_batches=2 + late).fit(model, tiny_loader(12))
        grads.append(model.func.w.grad)
    torch.testing.assert_close(*grads)


def test_ranks_that_solve_over_other_spans_are_an_error(monkeypatch):
    strategy = "pytorch_lightning.strategies.SingleDeviceStrategy"
    monkeypatch.setattr(f"{strategy}.broadcast", lambda *_: {"func": (0.0, 2.0)})
    with pytest.raises(ValueError, match=r"rank 0 solves over .*2.0.* and this one, rank 0, over"):
        fit(seeded(ForeignModel), SteerCallback(0.5, ["func"], seed=0))
