"""Failures that end a run, with their place."""

import warnings

import pytest
import pytorch_lightning as pl
import torch

from steer_lightning.guard import SolverGuard
from steer_lightning.solvers import (
    NFEBudgetExceededError,
    NonFiniteStateError,
    RepeatedFailureError,
    StepSizeUnderflowError,
)
from tests.helpers.faults import FAULTS, MAX_NFE, FaultyModel, fit, loader, untouched
from tests.helpers.models import seeded

each_fault = pytest.mark.parametrize("fault", FAULTS)


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


def test_an_error_outside_of_batches_names_no_batch():
    class Late(FaultyModel):
        def on_train_epoch_end(self):
            self(next(iter(loader("nan"))))

    with pytest.raises(NonFiniteStateError, match=r"atol = 0\.0001, rank 0\.") as caught:
        fit(SolverGuard(), "none", model=seeded(Late))
    assert caught.value.batch_idx is None


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_a_batch_before_broke_are_named(value):
    class Breaks(FaultyModel):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) * (value if batch_idx == 1 else 1.0)

    told = (
        f"rank 0, weights that are NaN or infinite already, after a batch whose loss was {value}"
    )
    with pytest.raises(NonFiniteStateError, match=told) as caught:
        fit(SolverGuard(), "none", "none", "none", model=seeded(Breaks))
    assert caught.value.batch_idx == 2


def test_other_exceptions_pass_and_the_model_is_put_back():
    class Breaks(FaultyModel):
        def training_step(self, batch, batch_idx):
            assert "training_step" in vars(self)
            raise ValueError("mine")

    model = seeded(Breaks, "adjoint")
    with pytest.raises(ValueError, match="mine"):
        fit(SolverGuard("skip"), "none", model=model)
    assert untouched(model)


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
    guard, again = SolverGuard("raise", save_batches=True), ("none", "blow-up", "none")
    with pytest.raises(StepSizeUnderflowError):  # a second run in this folder
        fit(guard, *again, default_root_dir=tmp_path)
    saved = torch.load(file, weights_only=True)
    torch.testing.assert_close(saved["batch"], list(loader(*again))[1])


def test_a_batch_that_cannot_be_saved_is_dropped_nevertheless(tmp_path):
    (tmp_path / "failed_batches").write_text("no folder")
    guard = SolverGuard("skip", save_batches=True)
    with pytest.warns(UserWarning, match="could not save a batch: FileExistsError"):
        fit(guard, "none", "nan", "none", default_root_dir=tmp_path)
    assert guard.skipped == 1


def test_nothing_is_saved_unasked(tmp_path):
    with pytest.warns(UserWarning, match="a batch is dropped"):
        fit(SolverGuard("skip"), "nan", default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nan_weights_end_the_run_by_naming_first_and_last():
    class Ruins(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    pl_module.block.vector_field.w[0] = float("nan")

    model = seeded(FaultyModel)
    with (
        pytest.warns(UserWarning, match="a batch is dropped"),
        pytest.raises(
            RepeatedFailureError,
            match=r"The solves of 3 training batches in a row failed\. The first, .*batch 2, rank "
            r"0, weights that .*\. The last, .*batch 4, rank 0, weights .*checkpoint before",
        ),
    ):
        fit(SolverGuard("skip", max_consecutive=3), *["none"] * 8, model=model, before=[Ruins()])
    assert untouched(model)


def test_failures_that_are_not_in_a_row_end_nothing():
    guard = SolverGuard("skip", max_consecutive=2)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        fit(guard, "nan", "none", "blow-up", "none", "nan", max_epochs=1)
    assert guard.skipped == 3


def test_a_run_all_of_whose_windows_are_dropped_ends():
    guard = SolverGuard("skip", max_consecutive=3)
    with (
        pytest.warns(UserWarning, match="a batch is dropped"),
        pytest.raises(RepeatedFailureError, match="of 3 training batches"),
    ):
        fit(guard, *["none", "nan"] * 4, accumulate_grad_batches=2)


def test_max_consecutive_of_one_raises_at_once():
    with pytest.raises(RepeatedFailureError, match="of 1 training batches in a row") as caught:
        fit(SolverGuard("skip", max_consecutive=1), "none", "nan")
    assert isinstance(caught.value.__cause__, NonFiniteStateError)


def test_a_dropped_batch_is_named_once_an_epoch():
    with warnings.catch_warnings(record=True, action="always") as caught:
        fit(SolverGuard("skip"), "nan", "nan", "none", max_epochs=2)
    said = [str(w.message) for w in caught if "a batch is dropped" in str(w.message)]
    assert len(said) == 2
    assert "epoch 0" in said[0]
    assert "epoch 1" in said[1]
