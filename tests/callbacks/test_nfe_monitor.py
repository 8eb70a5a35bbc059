import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from steer_lightning import NFEMonitor, PenaltyCallback, SteerCallback
from steer_lightning.nn import ODEBlock
from steer_lightning.penalties import KineticEnergy, LocalError
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.models import (
    ClockField,
    ForeignModel,
    OwnModel,
    RecordingField,
    TinyModule,
    seeded,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import Log, weights


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


@pytest.mark.parametrize("penalty", [KineticEnergy(0.1), LocalError(0.1, "one_step")])
@pytest.mark.parametrize("foreign", [False, True])
def test_what_a_penalty_evaluates_is_not_counted(penalty, foreign):
    path, counted = "func" if foreign else "field", []
    for penalties in ([], [PenaltyCallback(penalty, vector_fields=[path] * foreign or None)]):
        log, monitor = Log(), NFEMonitor(vector_fields=[path])
        model = seeded(ForeignModel if foreign else Counting)
        tiny_trainer(monitor, *penalties, log, max_steps=1).fit(model, tiny_loader(4))
        counted.append(log.train[0]["train/nfe_forward"])
    assert counted[1] == counted[0] > 0


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_training_logs_the_evaluations_of_each_batch_and_their_means(gradient):
    model, log = seeded(Counting, gradient), Log()
    trainer = tiny_trainer(SteerCallback(0.5, seed=0), NFEMonitor(), log, max_epochs=2)
    trainer.fit(model, tiny_loader(12))
    for phase, calls in (("forward", model.forward_calls), ("backward", model.backward_calls)):
        assert [m[f"train/nfe_{phase}"] for m in log.train] == calls
        assert len(calls) == 6
        mean = sum(calls[-3:]) / 3  # of the last epoch alone
        assert float(trainer.callback_metrics[f"train/nfe_{phase}_epoch"]) == pytest.approx(mean)
    assert all(n > 0 for n in model.forward_calls)
    assert all((n > 0) is (gradient == "adjoint") for n in model.backward_calls)
    assert not [name for name in log.train[0] if name.startswith("train/nfe_forward/")]


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
    log = Log()
    trainer = tiny_trainer(NFEMonitor(steps=True), log)
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
    assert {k: log.train[-1][k] for k in expected} == expected
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

    model, log = seeded(Foreign), Log()
    tiny_trainer(NFEMonitor(["func"]), log).fit(model, tiny_loader())
    logged = [m[f"train/nfe_{p}"] for m in log.train for p in ("forward", "backward")]
    assert logged == model.calls
    assert (logged[1] > 0) is adjoint
    assert not model.func._forward_hooks


def test_a_field_that_is_not_called_is_warned_of():
    class Direct(ForeignModel):
        def forward(self, y0):
            return odeint(self.func.forward, y0, torch.tensor([0.0, 1.0]), method="euler")[-1]

    monitor = NFEMonitor(["func"])
    for run, stage in (("fit", "training"), ("fit", "training"), ("test", "test")):
        message = rf"\['func'\] were not called in the first {stage} batch"
        with pytest.warns(UserWarning, match=message):
            getattr(tiny_trainer(monitor), run)(seeded(Direct), tiny_loader())


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
    plain, monitored = seeded(OwnModel), seeded(OwnModel)
    tiny_trainer().fit(plain, tiny_loader())
    tiny_trainer(NFEMonitor()).fit(monitored, tiny_loader())
    assert torch.equal(weights(plain), weights(monitored))


def test_evaluations_of_one_block_used_twice_add_up():
    class Twice(TinyModule):
        def __init__(self):
            super().__init__()
            self.block = ODEBlock(ClockField(), FixedGridSolver("euler", 3))

        def forward(self, y0):
            return self.block(self.block(y0))

    log = Log()
    tiny_trainer(NFEMonitor(), log).fit(seeded(Twice), tiny_loader())
    assert [m["train/nfe_forward"] for m in log.train] == [6.0, 6.0]


def test_a_compiled_block_is_counted_once_under_its_own_name():
    model, log = seeded(TwoBlocks), Log()
    model.a = torch.compile(model.a, backend="eager")
    tiny_trainer(NFEMonitor(), log).fit(model, tiny_loader())
    expected = {"train/nfe_forward": 13.0, "train/nfe_forward/a": 3.0, "train/nfe_forward/b": 10.0}
    found = {k: v for k, v in log.train[-1].items() if "forward" in k and "epoch" not in k}
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["func"], True), r"`steps` off .* `vector_fields`.* steps are not seen"),
        (([], True), r"`steps` off .* `vector_fields`.* steps are not seen"),
        (("func",), "list of dotted paths, but got the string 'func'"),
        ((), r"ForeignModel has none.*nothing to count.*vector_fields="),
        ((["fun"],), r"`vector_fields` .*Did you mean 'func'"),
    ],
)
def test_what_cannot_be_counted_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(NFEMonitor(*arguments)).fit(seeded(ForeignModel), tiny_loader())


def test_a_module_known_by_two_paths_may_be_named_by_either():
    class Alias(ForeignModel):
        def __init__(self):
            super().__init__()
            self.flow = nn.Sequential(self.func)

    log = Log()
    tiny_trainer(NFEMonitor(["flow.0"]), log).fit(seeded(Alias), tiny_loader())
    assert all(m["train/nfe_forward"] > 0 for m in log.train)


def test_batches_of_other_sizes_count_alike():
    class Twice(OwnModel):
        def training_step(self, batch, batch_idx):
            for _ in range(batch_idx):
                self(batch)
            return self.loss(batch)

    log = Log()
    trainer = tiny_trainer(NFEMonitor(), log)
    trainer.fit(seeded(Twice), tiny_loader(5))  # batches of four samples and of one
    first, last = (logged["train/nfe_forward"] for logged in log.train)
    assert last > first
    mean = trainer.callback_metrics["train/nfe_forward_epoch"]
    assert float(mean) == pytest.approx((first + last) / 2)
