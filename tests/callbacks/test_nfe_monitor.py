import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from steer_lightning import NFEMonitor, SteerCallback
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import (
    ClockField,
    ForeignModel,
    OwnModel,
    RecordingField,
    TinyModule,
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)


class Reads(pl.Callback):
    """Keeps what is logged at the end of every training batch, and the field's own count."""

    def __init__(self):
        self.train = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.train.append(metrics)


class Counting(OwnModel):
    """A block whose field counts for itself what each batch costs."""

    def __init__(self, gradient="autograd"):
        super().__init__(gradient)
        self.field = self.block.vector_field = RecordingField(ClockField())
        self.forward_calls, self.backward_calls, self.eval_calls = [], [], []

    def training_step(self, batch, batch_idx):
        self.field.times.clear()
        loss = self.loss(batch)
        self.forward_calls.append(len(self.field.times))
        return loss

    def on_after_backward(self):
        self.backward_calls.append(len(self.field.times) - self.forward_calls[-1])

    def validation_step(self, batch, batch_idx):
        self.field.times.clear()
        self(batch)
        self.eval_calls.append(len(self.field.times))

    test_step = validation_step


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_training_logs_the_evaluations_of_each_batch(gradient):
    model, reads = seeded(Counting, gradient), Reads()
    tiny_trainer(SteerCallback(0.5, seed=0), NFEMonitor(), reads).fit(model, tiny_loader())
    assert [m["train/nfe_forward"] for m in reads.train] == model.forward_calls
    assert [m["train/nfe_backward"] for m in reads.train] == model.backward_calls
    assert all(n > 0 for n in model.forward_calls)
    assert all((n > 0) is (gradient == "adjoint") for n in model.backward_calls)
    assert not [name for name in reads.train[0] if name.startswith("train/nfe_forward/")]


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_training_logs_the_means_of_each_epoch(gradient):
    class ReadsEpochs(pl.Callback):
        def __init__(self):
            self.means = []

        def on_train_end(self, trainer, pl_module):
            self.means.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    for n_epochs in (1, 2):
        model, reads = seeded(Counting, gradient), ReadsEpochs()
        callbacks = (SteerCallback(0.5, seed=0), NFEMonitor(), reads)
        tiny_trainer(*callbacks, max_epochs=n_epochs).fit(model, tiny_loader(12))
        for phase, calls in (("forward", model.forward_calls), ("backward", model.backward_calls)):
            assert len(calls) == 3 * n_epochs
            mean = sum(calls[-3:]) / 3  # of the last epoch alone
            assert reads.means[0][f"train/nfe_{phase}_epoch"] == pytest.approx(mean)
            assert reads.means[0][f"train/nfe_{phase}"] == calls[-1]


def test_evaluation_logs_the_mean_over_the_batches():
    model = seeded(Counting)
    trainer = tiny_trainer(NFEMonitor())
    (metrics,) = trainer.validate(model, tiny_loader(7), verbose=False)
    assert metrics == {"val/nfe_forward": pytest.approx(sum(model.eval_calls) / 2)}
    model.eval_calls.clear()
    (metrics,) = trainer.test(model, tiny_loader(7), verbose=False)
    assert metrics == {"test/nfe_forward": pytest.approx(sum(model.eval_calls) / 2)}


class TwoBlocks(TinyModule):
    def __init__(self):
        super().__init__()
        self.a = ODEBlock(ClockField(), FixedGridSolver("euler", 3))
        self.b = ODEBlock(ClockField(), FixedGridSolver("midpoint", 5))

    def forward(self, y0):
        return self.b(self.a(y0))


def test_several_blocks_are_logged_in_all_and_each():
    reads = Reads()
    trainer = tiny_trainer(NFEMonitor(steps=True), reads)
    trainer.fit(seeded(TwoBlocks), tiny_loader(), tiny_loader())
    expected = {
        "train/nfe_forward": 13.0,
        "train/nfe_forward/a": 3.0,
        "train/nfe_forward/b": 10.0,
        "train/nfe_backward": 0.0,
        "train/accepted": 8.0,
        "train/accepted/b": 5.0,
        "train/rejected": 0.0,
    }
    assert {k: reads.train[-1][k] for k in expected} == expected
    assert float(trainer.callback_metrics["val/nfe_forward/b"]) == 10.0
    assert float(trainer.callback_metrics["val/accepted"]) == 8.0


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_foreign_fields_calls_are_counted_by_hooks(adjoint):
    class Foreign(ForeignModel):
        def __init__(self):
            super().__init__(adjoint)
            self.func = RecordingField(ClockField())
            self.calls = []

        def training_step(self, batch, batch_idx):
            self.func.times.clear()
            loss = self.loss(batch)
            self.calls.append(len(self.func.times))
            return loss

        def on_after_backward(self):
            self.calls.append(len(self.func.times) - self.calls[-1])

    model, reads = seeded(Foreign), Reads()
    tiny_trainer(NFEMonitor(["func"]), reads).fit(model, tiny_loader())
    logged = [m[f"train/nfe_{p}"] for m in reads.train for p in ("forward", "backward")]
    assert logged == model.calls
    assert (logged[1] > 0) is adjoint
    assert not model.func._forward_hooks


def test_hooks_come_off_after_an_exception_too():
    class Breaks(ForeignModel):
        def training_step(self, batch, batch_idx):
            assert self.func._forward_hooks
            raise KeyError("mine")

    model = seeded(Breaks)
    with pytest.raises(KeyError, match="mine"):
        tiny_trainer(NFEMonitor(["func"])).fit(model, tiny_loader())
    assert not model.func._forward_hooks


def test_the_monitor_changes_no_bit():
    weights = []
    for callbacks in ([], [NFEMonitor()]):
        model = seeded(OwnModel)
        tiny_trainer(*callbacks).fit(model, tiny_loader())
        weights.append(model.block.vector_field.w.detach())
    assert torch.equal(*weights)


def test_evaluations_of_one_block_used_twice_add_up():
    class Twice(TinyModule):
        def __init__(self):
            super().__init__()
            self.block = ODEBlock(ClockField(), FixedGridSolver("euler", 3))

        def forward(self, y0):
            return self.block(self.block(y0))

    reads = Reads()
    tiny_trainer(NFEMonitor(), reads).fit(seeded(Twice), tiny_loader())
    assert [m["train/nfe_forward"] for m in reads.train] == [6.0, 6.0]


def test_a_compiled_block_is_counted_once_under_its_own_name():
    model, reads = seeded(TwoBlocks), Reads()
    model.a = torch.compile(model.a, backend="eager")
    tiny_trainer(NFEMonitor(), reads).fit(model, tiny_loader())
    expected = {"train/nfe_forward": 13.0, "train/nfe_forward/a": 3.0, "train/nfe_forward/b": 10.0}
    found = {k: v for k, v in reads.train[-1].items() if "forward" in k and "epoch" not in k}
    assert found == expected


@pytest.mark.parametrize("paths", [["func"], []])
def test_steps_of_named_fields_are_refused_as_they_are_not_seen(paths):
    with pytest.raises(ValueError, match=r"`steps` off .* `vector_fields`.* steps are not seen"):
        NFEMonitor(paths, steps=True)


def test_nothing_to_count_is_an_error():
    with pytest.raises(
        ValueError, match=r"ForeignModel has none.*nothing to count.*vector_fields="
    ):
        tiny_trainer(NFEMonitor()).fit(seeded(ForeignModel), tiny_loader())


def test_an_unknown_path_lists_the_near_ones():
    with pytest.raises(ValueError, match=r"`vector_fields` .*Did you mean 'func'"):
        tiny_trainer(NFEMonitor(["fun"])).fit(seeded(ForeignModel), tiny_loader())


def test_a_string_is_no_list_of_paths():
    with pytest.raises(ValueError, match=r"list of dotted paths, but got the string 'func'"):
        NFEMonitor("func")


def test_a_module_known_by_two_paths_may_be_named_by_either():
    class Alias(ForeignModel):
        def __init__(self):
            super().__init__()
            self.flow = nn.Sequential(self.func)

    reads = Reads()
    tiny_trainer(NFEMonitor(["flow.0"]), reads).fit(seeded(Alias), tiny_loader())
    assert all(m["train/nfe_forward"] > 0 for m in reads.train)


def test_the_counts_of_a_block_are_its_solvers():
    block = ODEBlock(ClockField(), TorchdiffeqSolver())
    block(tiny_data())
    once = block.stats.nfe_forward
    assert once == 2 + 6 * (block.stats.accepted + block.stats.rejected)
    block(tiny_data())
    assert block.stats.nfe_forward == 2 * once
