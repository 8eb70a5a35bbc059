"""What becomes of a training batch whose solve fails."""

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision

from steer_lightning import NFEMonitor, SteerCallback
from steer_lightning.callbacks import SolverGuard
from steer_lightning.solvers import (
    FixedGridSolver,
    NFEBudgetExceededError,
    NonFiniteStateError,
    RepeatedFailureError,
    SolverError,
    StepSizeUnderflowError,
    TorchdiffeqSolver,
)
from tests.helpers.faults import MAX_NFE, FaultyModel, Steps, assert_same, loader, state_of
from tests.helpers.models import seeded, tiny_trainer

FAULTS = {
    "nan": ("autograd", NonFiniteStateError, "forward"),
    "blow-up": ("autograd", StepSizeUnderflowError, "forward"),
    "budget": ("adjoint", NFEBudgetExceededError, "forward"),
    "adjoint": ("adjoint", NFEBudgetExceededError, "backward"),
}
HEALABLE = ("budget", "adjoint")
each_fault = pytest.mark.parametrize("fault", FAULTS)
WRAPPED = {"training_step", "backward", "optimizer_step", "lr_scheduler_step", "log"}


def fit(guard, *faults, gradient="autograd", before=(), after=(), model=None, **settings):
    model = seeded(FaultyModel, gradient) if model is None else model
    callbacks = (*before, *(() if guard is None else (guard,)), *after)
    trainer = tiny_trainer(*callbacks, **settings)
    trainer.fit(model, loader(*faults))
    return trainer


def untouched(model):
    return not WRAPPED & vars(model).keys() and isinstance(model.block.solver, TorchdiffeqSolver)


@each_fault
def test_raise_names_the_place(fault):
    gradient, error_class, phase = FAULTS[fault]
    model = seeded(FaultyModel, gradient)
    with pytest.raises(
        error_class, match=r"Where: block 'block', .*training, epoch 0, batch 1, rank 0\."
    ) as caught:
        fit(SolverGuard(), "none", fault, "none", model=model)
    error = caught.value
    assert (error.block, error.stage, error.epoch) == ("block", "training", 0)
    assert (error.batch_idx, error.rank, error.phase) == (1, 0, phase)
    assert (error.rtol, error.atol, error.dtype) == (1e-4, 1e-4, torch.float32)
    assert error.t is not None
    assert 0 < error.nfe <= MAX_NFE
    assert (error.nfe == MAX_NFE) is (error_class is NFEBudgetExceededError)
    assert untouched(model)


@each_fault
def test_skip_is_a_run_that_never_saw_the_batch(fault):
    gradient = FAULTS[fault][0]
    expected = fit(None, "none", "none", "none", gradient=gradient)
    guard, steps = SolverGuard("skip"), Steps()
    with pytest.warns(UserWarning, match=r"a batch is dropped.*block 'block'.*batch 1, rank 0"):
        found = fit(guard, "none", fault, "none", "none", gradient=gradient, after=[steps])
    assert_same(state_of(found), state_of(expected))
    assert [logged["solver/skipped"] for logged in steps.logged] == [0.0, 1.0, 1.0, 1.0]
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}
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


class Noisy(FaultyModel):
    """Draws from the global stream and from its own, and keeps what it drew."""

    def __init__(self, gradient="autograd"):
        super().__init__(gradient)
        self.stream_count = 0
        self.drawn = []

    def loss(self, batch):
        self.stream_count += 1
        noise = torch.rand(())
        self.drawn.append((self.stream_count, float(noise)))
        return super().loss(batch) + 0.0 * noise


@pytest.mark.parametrize("fault", HEALABLE)
@pytest.mark.parametrize("steer_first", [True, False])
def test_fallback_solves_again_to_the_same_end_with_the_same_noise(fault, steer_first):
    model, guard = seeded(Noisy, "adjoint"), SolverGuard("fallback", fallback_steps=7)
    steps, steer = Steps(), SteerCallback(0.5, seed=0)
    before, after = ([steer], [steps]) if steer_first else ([], [steer, steps])
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        fit(guard, "none", fault, "none", model=model, before=before, after=after)
    assert [count for count, _ in model.drawn] == [1, 2, 2, 3]
    assert model.drawn[1] == model.drawn[2]
    ends = [logged["steer/block.horizon/end_time"] for logged in steps.logged]
    if fault == "adjoint":  # the first attempt reached the end too
        assert model.ends[1] == pytest.approx(ends[1], abs=1e-5)
    assert model.ends[-2] == pytest.approx(ends[1], abs=1e-5)
    assert len({round(end, 4) for end in ends}) == 3
    assert [logged["solver/fallbacks"] for logged in steps.logged] == [0.0, 1.0, 1.0]
    assert guard.state_dict() == {"skipped": 0, "fallbacks": 1}
    assert untouched(model)


@pytest.mark.parametrize("fault", HEALABLE)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fallback_takes_the_step_of_a_fixed_grid(fault, accumulate):
    """The same as a model that has the fixed grid for that batch from the beginning."""

    class Fixed(FaultyModel):
        def training_step(self, batch, batch_idx):
            own = self.block.solver
            if batch_idx == 1:
                self.block.solver = FixedGridSolver("rk4", 8)
            loss = super().training_step(batch, batch_idx)
            self.block.solver = own
            return loss

    faults = ("none", fault, "none", "none")
    expected = fit(
        None, *faults, model=seeded(Fixed, "adjoint"), accumulate_grad_batches=accumulate
    )
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = fit(
            SolverGuard("fallback", fallback_steps=8), *faults,
            gradient="adjoint", accumulate_grad_batches=accumulate,
        )  # fmt: skip
    assert_same(state_of(found), state_of(expected))


@pytest.mark.parametrize("fault", ["nan", "blow-up"])
def test_what_a_fixed_grid_cannot_solve_either_is_dropped(fault):
    expected = fit(None, "none", "none")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match="solved again on a fixed grid, or dropped"):
        found = fit(guard, "none", fault, "none")
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


def test_a_fallback_whose_gradient_is_not_finite_is_dropped():
    class Steep(FaultyModel):
        """Its loss is finite on a fixed grid, its gradient is not."""

        def loss(self, batch):
            loss = super().loss(batch)
            if not isinstance(self.block.solver, TorchdiffeqSolver):
                loss = loss + (self.block.vector_field.w * 0.0).sum().sqrt()
            return loss

    expected = fit(None, "none", "none")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = fit(guard, "none", "budget", "none", model=seeded(Steep))
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


def test_what_the_step_logs_is_logged_once_when_the_adjoint_failed():
    class Logs(FaultyModel):
        def training_step(self, batch, batch_idx):
            self.log("calls", float(len(self.ends)), on_step=False, on_epoch=True)
            return self.loss(batch)

    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        trainer = fit(SolverGuard("fallback"), "none", "adjoint", model=seeded(Logs, "adjoint"))
    assert len(trainer.lightning_module.ends) == 3
    assert float(trainer.callback_metrics["calls"]) == 0.5


@pytest.mark.parametrize("policy", ["skip", "fallback"])
def test_nan_weights_end_the_run_by_naming_first_and_last(policy):
    class Ruins(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    pl_module.block.vector_field.w[0] = float("nan")

    model = seeded(FaultyModel)
    with (
        pytest.warns(UserWarning, match="SolverGuard: a batch is"),
        pytest.raises(
            RepeatedFailureError,
            match=r"The solves of 3 training batches in a row failed\. The first, .*batch 2, rank "
            r"0\. The last, .*batch 4, rank 0\..*checkpoint before",
        ),
    ):
        fit(SolverGuard(policy, max_consecutive=3), *["none"] * 8, model=model, before=[Ruins()])
    assert untouched(model)


def test_failures_that_are_not_in_a_row_end_nothing():
    guard = SolverGuard("skip", max_consecutive=2)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        fit(guard, "nan", "none", "blow-up", "none", "nan", max_epochs=1)
    assert guard.skipped == 3


def test_max_consecutive_of_one_raises_at_once():
    with pytest.raises(RepeatedFailureError, match="of 1 training batches in a row") as caught:
        fit(SolverGuard("skip", max_consecutive=1), "none", "nan")
    assert isinstance(caught.value.__cause__, NonFiniteStateError)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("b", [0.0, 0.5])
@pytest.mark.parametrize("steer_first", [True, False])
def test_steer_goes_on_after_a_dropped_batch(fault, policy, b, steer_first):
    """Against a step that returns None for that batch before it solves anything."""

    class Absent(FaultyModel):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else self.loss(batch)

        def configure_optimizers(self):  # a step of None moves a schedule
            return torch.optim.Adam(self.parameters(), lr=0.05)

    class Same(FaultyModel):
        configure_optimizers = Absent.configure_optimizers

    def run(guard, model):
        callbacks = [SteerCallback(b, seed=0), guard]
        callbacks = callbacks if steer_first else callbacks[::-1]
        return fit(None, "none", fault, "none", "none", model=model, before=callbacks)

    gradient = FAULTS[fault][0]
    model = seeded(Same, gradient)
    if policy == "raise":
        with pytest.raises(SolverError, match=r"block 'block'.* batch 1"):
            run(SolverGuard(), model)
        assert model.block.horizon.draw is None
        assert model.block.horizon.owner is None
        return
    expected = state_of(run(SolverGuard(), seeded(Absent, gradient)))
    with pytest.warns(UserWarning, match="a batch is dropped"):
        found = state_of(run(SolverGuard("skip"), model))
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


@pytest.mark.parametrize("policy", ["raise", "skip", "fallback"])
def test_the_guard_changes_no_bit_of_a_run_without_failure(policy):
    faults = ["none"] * 4
    expected = fit(None, *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)])
    found = fit(
        SolverGuard(policy), *faults, gradient="adjoint", before=[SteerCallback(0.5, seed=0)]
    )
    assert_same(state_of(found), state_of(expected))


@pytest.mark.parametrize("policy", ["skip", "fallback"])
def test_bf16_mixed_works(policy):
    guard = SolverGuard(policy)
    with pytest.warns(UserWarning, match="SolverGuard: a batch is"):
        trainer = fit(guard, "none", "adjoint", "none", gradient="adjoint", precision="bf16-mixed")
    assert sum(guard.state_dict().values()) == 1
    assert all(v.isfinite().all() for v in state_of(trainer).values())


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}, scaler


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


def test_a_fallback_s_gradient_is_scaled_like_any_other():
    states = []
    for settings in ({}, scaled()[0]):
        guard = SolverGuard("fallback")
        with pytest.warns(UserWarning, match="solved again on a fixed grid"):
            found = fit(guard, "none", "adjoint", "none", gradient="adjoint", **settings)
        assert guard.fallbacks == 1
        states.append(state_of(found))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5)


def test_what_fails_on_a_fixed_grid_after_a_failed_adjoint_is_dropped():
    class Infinite(FaultyModel):
        def loss(self, batch):
            fixed = isinstance(self.block.solver, FixedGridSolver)
            return super().loss(batch) * (float("inf") if fixed else 1.0)

    expected = fit(None, "none", "none", gradient="adjoint")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match="or dropped if that fails too"):
        found = fit(guard, "none", "adjoint", "none", model=seeded(Infinite, "adjoint"))
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


@pytest.mark.parametrize("fault", HEALABLE)
def test_after_a_drop_the_rest_of_the_window_is_not_tried_again(fault):
    guard = SolverGuard("fallback")
    expected = fit(None, "none", "none", gradient="adjoint", accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="or dropped if that fails too"):
        found = fit(
            guard, "none", "none", "nan", fault,
            gradient="adjoint", accumulate_grad_batches=2,
        )  # fmt: skip
    assert guard.state_dict() == {"skipped": 2, "fallbacks": 0}
    assert_same(state_of(found), state_of(expected))


@pytest.mark.parametrize("policy", ["raise", "skip", "fallback"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_always_raises_with_the_place(policy, stage):
    model = seeded(FaultyModel)
    name = {"validate": "validation"}.get(stage, stage)
    with pytest.raises(
        NFEBudgetExceededError, match=rf"block 'block', .*{name}, epoch 0, batch 1, rank 0\."
    ):
        getattr(tiny_trainer(SolverGuard(policy)), stage)(model, loader("none", "budget"))


def test_validation_within_a_fit_raises_too():
    model = seeded(FaultyModel)
    with pytest.raises(NFEBudgetExceededError, match=r"validation, epoch 0, batch 1, rank 0\."):
        tiny_trainer(SolverGuard("skip"), num_sanity_val_steps=0).fit(
            model, loader("none"), loader("none", "budget")
        )
    assert untouched(model)


def test_an_error_outside_of_batches_names_no_batch():
    class Late(FaultyModel):
        def on_train_epoch_end(self):
            self(next(iter(loader("nan"))))

    with pytest.raises(NonFiniteStateError, match=r"atol = 0\.0001, rank 0\.") as caught:
        fit(SolverGuard(), "none", model=seeded(Late))
    assert caught.value.batch_idx is None


def test_other_exceptions_pass_and_the_model_is_put_back():
    class Breaks(FaultyModel):
        def training_step(self, batch, batch_idx):
            assert "training_step" in vars(self)
            if not isinstance(self.block.solver, TorchdiffeqSolver):
                raise KeyError("mine")
            return self.loss(batch)

    model = seeded(Breaks)
    with (
        pytest.warns(UserWarning, match="SolverGuard: a batch is"),
        pytest.raises(KeyError, match="mine"),
    ):
        fit(SolverGuard("fallback", random_fields="ignore"), "none", "budget", model=model)
    assert untouched(model)


def test_a_method_set_on_the_instance_is_put_back():
    model = seeded(FaultyModel)
    own = model.training_step
    model.training_step = own
    fit(SolverGuard("skip"), "none", model=model)
    assert vars(model)["training_step"] == own


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_batch_is_saved_on_request(tmp_path, policy):
    guard, faults = SolverGuard(policy, save_batches=True), ("none", "nan", "none")
    if policy == "skip":
        with pytest.warns(UserWarning, match="a batch is dropped"):
            fit(guard, *faults, default_root_dir=tmp_path)
    else:
        with pytest.raises(NonFiniteStateError, match="batch 1"):
            fit(guard, *faults, default_root_dir=tmp_path)
    (file,) = (tmp_path / "failed_batches").iterdir()
    assert file.name == "training_epoch0_batch1_rank0.pt"
    saved = torch.load(file, weights_only=True)
    torch.testing.assert_close(saved["batch"], list(loader(*faults))[1], equal_nan=True)
    assert "NaN or infinite" in saved["error"]


def test_nothing_is_saved_unasked(tmp_path):
    with pytest.warns(UserWarning, match="a batch is dropped"):
        fit(SolverGuard("skip"), "nan", default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_counts_go_on_after_a_resume(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.warns(UserWarning, match="a batch is dropped"):
        trainer = fit(SolverGuard("skip"), "none", "nan")
    trainer.save_checkpoint(path)
    guard, model = SolverGuard("skip"), seeded(FaultyModel)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        tiny_trainer(guard, max_epochs=2).fit(model, loader("none", "nan"), ckpt_path=path)
    assert guard.skipped == 2


def test_evaluations_of_both_attempts_are_counted():
    reads = Steps()
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        fit(
            SolverGuard("fallback", fallback_steps=5), "budget", gradient="adjoint",
            before=[NFEMonitor()], after=[reads],
        )  # fmt: skip
    # The budget, then five steps of four; the checkpointed steps are evaluated again.
    assert reads.logged[0]["train/nfe_forward"] == MAX_NFE + 20
    assert reads.logged[0]["train/nfe_backward"] == 20


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
