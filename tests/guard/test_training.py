"""A failed batch dropped without a trace."""

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning import SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import ForeignSolverError, SolverError, TorchdiffeqSolver
from steer_lightning.solvers.foreign import as_solver_error
from tests.helpers.faults import (
    FAULTS,
    MARKS,
    FaultyModel,
    fit,
    loader,
    scaled,
    state_of,
    untouched,
)
from tests.helpers.models import ClockField, TinyModule, seeded, tiny_loader, tiny_trainer
from tests.helpers.watching import Log, assert_same

each_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_training_step_that_validates_fails_as_a_validation(policy):
    class Validates(FaultyModel):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

    guard, model = SolverGuard(policy), seeded(Validates)
    trainer = tiny_trainer(guard, num_sanity_val_steps=0)
    with pytest.raises(SolverError, match=r"validation, epoch 0, batch 1, rank 0"):
        trainer.fit(model, loader("none", "none"), loader("none", "nan"))
    assert (guard.skipped, trainer.global_step) == (0, 2)


@each_fault
@pytest.mark.parametrize("where", [(1,), (0, 3)])
def test_skip_is_a_run_that_never_saw_the_batches(fault, where):
    gradient = FAULTS[fault][0]
    expected = fit(None, *["none"] * (4 - len(where)), gradient=gradient)
    guard, steps = SolverGuard("skip"), Log()
    faults = [fault if i in where else "none" for i in range(4)]
    warned = rf"a batch is dropped.*block 'block'.*batch {where[0]}, rank 0"
    with pytest.warns(UserWarning, match=warned):
        found = fit(guard, *faults, gradient=gradient, after=[steps])
    assert_same(state_of(found), state_of(expected))
    skipped = [sum(failed <= i for failed in where) for i in range(4)]
    assert [logged["solver/skipped"] for logged in steps.train] == skipped
    assert guard.state_dict() == {"skipped": len(where)}
    assert untouched(found.lightning_module)


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


def steered(model, guard, b, steer_first, *faults):
    callbacks = [SteerCallback(b, seed=0), guard]
    return fit(None, *faults, model=model, before=callbacks[:: 1 if steer_first else -1])


@each_fault
@pytest.mark.parametrize("steer_first", [True, False])
def test_steer_is_put_back_after_a_failure(fault, steer_first):
    model = seeded(FaultyModel, FAULTS[fault][0])
    with pytest.raises(SolverError, match=r"block 'block'.* batch 1"):
        steered(model, SolverGuard(), 0.5, steer_first, "none", fault)
    assert model.block.horizon.draw is None
    assert model.block.horizon.owner is None


@each_fault
@pytest.mark.parametrize(("b", "steer_first"), [(0.0, True), (0.5, True), (0.5, False)])
def test_steer_goes_on_after_a_dropped_batch(fault, b, steer_first):
    """Against a step that returns None for that batch before it solves anything."""
    gradient, run = FAULTS[fault][0], (b, steer_first, "none", fault, "none", "none")
    model = seeded(Unscheduled, gradient)
    expected = state_of(steered(seeded(Absent, gradient), SolverGuard(), *run))
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = state_of(steered(model, SolverGuard("skip"), *run))
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

    model = seeded(Two)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        steered(model, SolverGuard("skip"), 0.5, steer_first, "nan", "none")
    assert len(model.ends) == 1


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_guard_changes_no_bit_of_a_run_without_failure(policy):
    faults = ["none"] * 4
    expected = fit(None, *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)])
    found = fit(
        SolverGuard(policy), *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)]
    )
    assert_same(state_of(found), state_of(expected))


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


@pytest.mark.parametrize("policy", [None, "raise", "skip"])
def test_a_gradient_scaler_finds_its_scale_through_an_adjoint(policy):
    class Steep(TinyModule):
        def __init__(self):
            super().__init__()
            solver = TorchdiffeqSolver(gradient="adjoint")
            self.net = nn.Sequential(ODEBlock(ClockField(), solver), nn.Linear(2, 2))

        def forward(self, y0):
            return 1e3 * self.net(y0).float()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-9)

    settings, scaler = scaled()
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**16, "growth_interval": 100})
    guard = [] if policy is None else [SolverGuard(policy)]
    trainer = tiny_trainer(*guard, max_epochs=10, **settings)
    trainer.fit(model := seeded(Steep), tiny_loader())
    assert scaler.get_scale() < 2.0**16
    assert all(p.isfinite().all() for p in model.parameters())
    assert not guard or guard[0].skipped == 0


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
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SteerCallback(0.5, seed=0), guard],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"a batch is dropped.*block 'inner\.block'"):
        trainer.fit(model := Model(), loader("none", "nan", "none"))
    assert guard.skipped == 1
    assert trainer.global_step == 2
    end = float(trainer.callback_metrics["steer/inner.block.horizon/end_time"])
    assert end == pytest.approx(model.inner.ends[-1], abs=1e-4)


def test_a_later_evaluation_of_a_step_that_fails_is_an_error():
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            closure()
            super().step()

    class Breaks(FaultyModel):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            return super().training_step(
                batch * (torch.nan if self.calls == 2 else 1.0), batch_idx
            )

        def configure_optimizers(self):
            return Twice(self.parameters(), lr=0.1)

    with (
        pytest.warns(UserWarning, match="a batch is dropped"),
        pytest.raises(
            MisconfigurationException, match=r"evaluation of .*Twice failed, when it may"
        ),
    ):
        tiny_trainer(SolverGuard("skip")).fit(seeded(Breaks), loader("none"))


def test_memory_that_runs_out_is_no_failure_of_a_solve():
    library = {"__name__": "torchdiffeq.odeint", "kinds": (RuntimeError, torch.OutOfMemoryError)}
    exec("def fail(i): raise kinds[i]('of torchdiffeq')", library)
    found = []
    for i in (0, 1):
        with pytest.raises(RuntimeError, match="of torchdiffeq") as caught:
            library["fail"](i)
        found.append(as_solver_error(caught.value, "forward"))
    assert isinstance(found[0], ForeignSolverError)
    assert found[1] is None


class Foreign(FaultyModel):
    """Solves by torchdiffeq itself; a marked batch breaks what its adjoint starts from."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, y0):
        options = {"rtol": 1e-4, "atol": 1e-4, "method": "dopri5"}
        y = self.call(self.block.vector_field, y0, torch.tensor([0.0, 1.0]), **options)[-1]
        if y0[1, 2] == MARKS["adjoint"]:
            y.register_hook(lambda grad: grad * float("nan"))
        return y


@pytest.mark.parametrize(
    ("call", "fault", "warned"),
    [
        *((call, fault, "A forward solve of torchdiffeq failed: .* batch 1")
          for call in (odeint, odeint_adjoint) for fault in ("nan", "blow-up")),
        (odeint_adjoint, "adjoint", "A backward solve of torchdiffeq failed: underflow"),
    ],
)  # fmt: skip
def test_a_solve_of_torchdiffeq_that_fails_is_dropped_too(call, fault, warned):
    expected = fit(None, "none", "none", model=seeded(Foreign, call))
    with pytest.warns(UserWarning, match=warned):
        found = fit(SolverGuard("skip"), "none", fault, "none", model=seeded(Foreign, call))
    assert_same(state_of(found), state_of(expected))
    where = "Where: training, epoch 0, batch 0, rank 0"
    if fault != "adjoint":
        with pytest.raises(ForeignSolverError, match=where):
            fit(SolverGuard(), fault, model=seeded(Foreign, call))
    else:
        with (
            pytest.warns(UserWarning, match=f"backward solve.*{where}"),
            pytest.raises(AssertionError),
        ):
            fit(SolverGuard(), fault, model=seeded(Foreign, call))


def test_fields_are_looked_at_within_a_checkpoint():
    class Checkpointed(FaultyModel):
        def forward(self, y0):
            return checkpoint(super().forward, y0, use_reentrant=False)

    class Noise(nn.Module):
        def forward(self, t, y):
            return torch.randn_like(y)

    fit(SolverGuard(), "none", "none", model=seeded(Checkpointed))
    model = seeded(Checkpointed)
    model.block.vector_field = Noise()
    with pytest.raises(ValueError, match="defines no ODE"):
        fit(SolverGuard(random_fields="raise"), "none", model=model)
