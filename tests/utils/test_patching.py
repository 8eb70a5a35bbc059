"""Wrapped methods, and copies of what holds them."""

import copy
import io
import pickle

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature

from steer_lightning.guard import SolverGuard
from steer_lightning.utils.patching import WrappedMethods
from tests.helpers.faults import FaultyModel, fit, loader
from tests.helpers.models import OwnModel, seeded, tiny_loader, tiny_trainer


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def doubling(module):
    methods = WrappedMethods(module)
    methods.wrap("training_step", lambda own, *args: 2.0 * own(*args))
    return methods


def test_a_method_is_wrapped_and_comes_back():
    model, (batch,) = seeded(OwnModel), tiny_loader(4)
    expected = model.training_step(batch, 0)
    methods = doubling(model)
    assert torch.equal(model.training_step(batch, 0), 2.0 * expected)
    methods.release()
    methods.release()
    assert torch.equal(model.training_step(batch, 0), expected)
    assert "training_step" not in vars(model)


def test_a_method_of_the_instance_comes_back():
    model = seeded(OwnModel)
    model.training_step = own = lambda batch, batch_idx: torch.ones(())
    methods = doubling(model)
    assert model.training_step(None, 0) == 2.0
    assert copy.deepcopy(model).training_step(None, 0) == 1.0
    methods.release()
    assert vars(model)["training_step"] is own


@pytest.mark.parametrize("first", [0, 1])
def test_two_may_wrap_one_method_and_leave_in_any_order(first):
    model, (batch,) = seeded(OwnModel), tiny_loader(4)
    expected = model.training_step(batch, 0)
    methods = [doubling(model), doubling(model)]
    assert torch.equal(model.training_step(batch, 0), 4.0 * expected)
    methods[first].release()
    assert torch.equal(model.training_step(batch, 0), 2.0 * expected)
    methods[1 - first].release()
    assert "training_step" not in vars(model)


def test_lightning_reads_what_is_wrapped():
    class Fetches(pl.LightningModule):
        def training_step(self, dataloader_iter):
            raise NotImplementedError

    model = Fetches()
    methods = [WrappedMethods(model), WrappedMethods(model)]
    for wrapped in methods:
        wrapped.wrap("training_step", lambda own, *args: own(*args))
        wrapped.wrap("validation_step", lambda own, *args: own(*args))
    assert is_param_in_hook_signature(model.training_step, "dataloader_iter", explicit=True)
    assert is_overridden("training_step", model)
    assert not is_overridden("validation_step", model)


@each_copy
def test_a_copy_has_the_methods_of_its_class(copied):
    model, (batch,) = seeded(OwnModel), tiny_loader(4)
    expected = model.training_step(batch, 0).detach()
    methods = doubling(model)
    other = copied(model)
    methods.release()
    for again in (other, copied(other)):
        loss = again.training_step(batch, 0)
        assert torch.equal(loss, expected)
        loss.backward()
        assert again.block.vector_field.w.grad is not None
    assert model.block.vector_field.w.grad is None


class Copies(pl.Callback):
    """Copies the module in training and in validation."""

    def __init__(self, copied):
        self.copied = copied
        self.copies = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.copies.append(self.copied(pl_module))

    on_validation_batch_end = on_train_batch_end


@each_copy
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_copy_made_under_a_guard_learns_and_leaves_the_original_alone(copied, policy):
    model, copies = seeded(FaultyModel), Copies(copied)
    trainer = tiny_trainer(SolverGuard(policy), copies, num_sanity_val_steps=0)
    trainer.fit(model, loader("none"), loader("none"))
    assert len(copies.copies) == 2
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for other in copies.copies:
        before = other.block.vector_field.w.detach().clone()
        fit(SolverGuard(policy), "none", "none", model=other)
        assert not torch.equal(other.block.vector_field.w, before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
