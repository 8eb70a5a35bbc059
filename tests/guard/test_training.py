"""A failed batch dropped without a trace."""

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning import SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.solvers import ForeignSolverError, SolverError
from tests.helpers.faults import (
    FAULTS,
    MARKS,
    FaultyModel,
    Steps,
    assert_same,
    fit,
    loader,
    scaled,
    state_of,
    untouched,
)
from tests.helpers.models import seeded, tiny_trainer

each_fault = pytest.mark.parametrize("fault", FAULTS)


@each_fault
def test_skip_is_a_run_that_never_saw_the_batch(fault):
    gradient = FAULTS[fault][0]
    expected = fit(None, "none", "none", "none", gradient=gradient)
    guard, steps = SolverGuard("skip"), Steps()
    with pytest.warns(UserWarning, match=r"a batch is dropped.*block 'block'.*batch 1, rank 0"):
        found = fit(guard, "none", fault, "none", "none", gradient=gradient, after=[steps])
    assert_same(state_of(found), state_of(expected))
    assert [logged["solver/skipped"] for logged in steps.logged] == [0.0, 1.0, 1.0, 1.0]
    assert guard.state_dict() == {"skipped": 1}
    assert untouched(found.lightning_module)


@each_fault
def test_skip_may_drop_the_first_batch_and_the_last(fault):
    gradient = FAULTS[fault][0]
    expected = fit(None, "none", gradient=gradient)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = fit(SolverGuard("skip"), fault, "none", fault, gradient=gradient)
    assert_same(state_of(found), state_of(expected))


@each_fault
@pytest.mark.parametrize("where", [2, 3])
def test_accumulation_drops_the_whole_window(fault, where):
    gradient = FAULTS[fault][0]
    expected = fit(None, *["none"] * 2, gradient=gradient, accumulate_grad_batches=2)
    faults = ["none"] * 4
    faults[where] = fault
    guard = SolverGuard("skip")
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = fit(guard, *faults, gradient=gradient, accumulate_grad_batches=2)
    weights, reference = state_of(found), state_of(expected)
    # The statistics are those of the tame batch of that window too.
    for state in (weights, reference):
        for name in [name for name in state if name.startswith("model.norm.")]:
            assert state.pop(name).isfinite().all()
    reference |= {k: v for k, v in weights.items() if k.startswith("model.norm.")}
    assert guard.skipped == 1
    assert_same(weights, reference)


def test_buffers_that_a_step_replaces_are_put_back():
    class Averages(FaultyModel):
        def __init__(self):
            super().__init__()
            self.register_buffer("average", torch.zeros(1))

        def loss(self, batch):
            self.average = 0.9 * self.average + 0.1 * batch[:, :1].mean(0)
            return super().loss(batch)

    expected = fit(None, "none", "none", "none", model=seeded(Averages))
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = fit(SolverGuard("skip"), "none", "nan", "none", "none", model=seeded(Averages))
    assert_same(state_of(found), state_of(expected))
    assert found.lightning_module.average.item() != 0.0


def test_averaged_weights_see_no_step():
    def ema():
        return pl.callbacks.EMAWeightAveraging(decay=0.5)

    expected = fit(None, "none", "none", before=[ema()])
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = fit(SolverGuard("skip"), "none", "nan", "nan", "none", before=[ema()])
    assert torch.equal(
        found.lightning_module.block.vector_field.w, expected.lightning_module.block.vector_field.w
    )


def test_steps_are_counted_as_taken():
    with pytest.warns(UserWarning, match="a batch is dropped"):
        trainer = fit(SolverGuard("skip"), "none", "nan", "none", "none", "none", max_steps=3)
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_loop.batch_idx == 3


class Unscheduled(FaultyModel):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Absent(Unscheduled):  # a step of None would move a schedule
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else self.loss(batch)


def steered(model, guard, fault, b, steer_first):
    callbacks = [SteerCallback(b, seed=0), guard]
    callbacks = callbacks if steer_first else callbacks[::-1]
    return fit(None, "none", fault, "none", "none", model=model, before=callbacks)


@each_fault
@pytest.mark.parametrize("steer_first", [True, False])
def test_steer_is_put_back_after_a_failure(fault, steer_first):
    model = seeded(FaultyModel, FAULTS[fault][0])
    with pytest.raises(SolverError, match=r"block 'block'.* batch 1"):
        steered(model, SolverGuard(), fault, 0.5, steer_first)
    assert model.block.horizon.draw is None
    assert model.block.horizon.owner is None


@each_fault
@pytest.mark.parametrize(("b", "steer_first"), [(0.0, True), (0.5, True), (0.5, False)])
def test_steer_goes_on_after_a_dropped_batch(fault, b, steer_first):
    """Against a step that returns None for that batch before it solves anything."""
    gradient = FAULTS[fault][0]
    model = seeded(Unscheduled, gradient)
    expected = state_of(steered(seeded(Absent, gradient), SolverGuard(), fault, b, steer_first))
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = state_of(steered(model, SolverGuard("skip"), fault, b, steer_first))
    del found["global_step"], expected["global_step"]
    assert_same(found, expected)
    assert model.block.horizon.draw is None


@pytest.mark.parametrize("steer_first", [True, False])
def test_a_failure_in_the_first_batch_is_no_horizon_left_unsolved(steer_first):
    class Two(FaultyModel):
        """The failure of the first block keeps the second from being solved."""

        def __init__(self):
            super().__init__()
            self.second = FaultyModel().block

        def forward(self, y0):
            return self.second(self.block(y0))

    callbacks = [SteerCallback(0.5, seed=0), SolverGuard("skip")]
    callbacks = callbacks if steer_first else callbacks[::-1]
    model = seeded(Two)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        fit(None, "nan", "none", model=model, before=callbacks)
    assert len(model.ends) == 1


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_guard_changes_no_bit_of_a_run_without_failure(policy):
    faults = ["none"] * 4
    expected = fit(None, *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)])
    found = fit(
        SolverGuard(policy), *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)]
    )
    assert_same(state_of(found), state_of(expected))


def test_bf16_mixed_works():
    guard = SolverGuard("skip")
    with pytest.warns(UserWarning, match="a batch is dropped"):
        trainer = fit(guard, "none", "adjoint", "none", gradient="adjoint", precision="bf16-mixed")
    assert guard.skipped == 1
    assert all(v.isfinite().all() for v in state_of(trainer).values())


@pytest.mark.parametrize("fault", ["nan", "adjoint"])
def test_a_gradient_scaler_sees_no_step(fault):
    settings, expected_scaler = scaled()
    expected = fit(None, "none", "none", "none", gradient="adjoint", **settings)
    settings, scaler = scaled()
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = fit(
            SolverGuard("skip"), "none", fault, "none", "none", gradient="adjoint", **settings
        )
    assert_same(state_of(found), state_of(expected))
    assert scaler.state_dict() == expected_scaler.state_dict()


def test_counts_go_on_after_a_resume(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.warns(UserWarning, match="a batch is dropped"):
        trainer = fit(SolverGuard("skip"), "none", "nan")
    trainer.save_checkpoint(path)
    guard, model = SolverGuard("skip"), seeded(FaultyModel)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        tiny_trainer(guard, max_epochs=2).fit(model, loader("none", "nan"), ckpt_path=path)
    assert guard.skipped == 2


def test_works_under_the_trainer_of_the_lightning_package():
    class Model(lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = seeded(FaultyModel)

        def training_step(self, batch, batch_idx):
            return self.inner.loss(batch)

        def configure_optimizers(self):
            return self.inner.configure_optimizers()

    guard = SolverGuard("skip")
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[guard],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"a batch is dropped.*block 'inner\.block'"):
        trainer.fit(Model(), loader("none", "nan", "none"))
    assert guard.skipped == 1
    assert trainer.global_step == 2


class Foreign(FaultyModel):
    """Solves by torchdiffeq itself."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, y0):
        options = {"rtol": 1e-4, "atol": 1e-4, "method": "dopri5"}
        return self.call(self.block.vector_field, y0, torch.tensor([0.0, 1.0]), **options)[-1]


@pytest.mark.parametrize("fault", ["nan", "blow-up"])
@pytest.mark.parametrize("call", [odeint, odeint_adjoint])
def test_a_solve_of_torchdiffeq_that_fails_is_dropped_too(call, fault):
    expected = fit(None, "none", "none", model=seeded(Foreign, call))
    with pytest.warns(UserWarning, match=r"A forward solve of torchdiffeq failed: .* batch 1"):
        found = fit(SolverGuard("skip"), "none", fault, "none", model=seeded(Foreign, call))
    assert_same(state_of(found), state_of(expected))
    with pytest.raises(ForeignSolverError, match="Where: training, epoch 0, batch 0, rank 0"):
        fit(SolverGuard(), fault, model=seeded(Foreign, call))


class AdjointFails(Foreign):
    def forward(self, y0):
        y = super().forward(y0)
        if y0[1, 2] == MARKS["adjoint"]:
            y.register_hook(lambda grad: grad * float("nan"))
        return y


def test_an_adjoint_of_torchdiffeq_that_fails_is_dropped_too():
    expected = fit(None, "none", "none", model=seeded(Foreign, odeint_adjoint))
    with pytest.warns(UserWarning, match="A backward solve of torchdiffeq failed: underflow"):
        found = fit(
            SolverGuard("skip"), "none", "adjoint", "none",
            model=seeded(AdjointFails, odeint_adjoint),
        )  # fmt: skip
    assert_same(state_of(found), state_of(expected))


def test_errors_of_other_kinds_go_on():
    class Mistaken(FaultyModel):
        def loss(self, batch):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fit(SolverGuard("skip"), "none", model=seeded(Mistaken))
