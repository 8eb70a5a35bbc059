"""State of callbacks that belongs to a training: resumed with it, and left alone by evaluation."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from steer_lightning import NFEMonitor, PenaltyCallback, SteerCallback
from steer_lightning.callbacks import StepMemories, TrainingClock
from steer_lightning.guard import SolverGuard
from steer_lightning.nn import ODEBlock
from steer_lightning.penalties import KineticEnergy
from steer_lightning.solvers import AdaptiveSolver
from tests.helpers.models import (
    ClockField,
    OwnModel,
    TinyModule,
    lively,
    seeded,
    tiny_data,
    tiny_loader,
    tiny_trainer,
)


class Remembering(TinyModule):
    """Its block, with a solver that remembers, is built as late as Lightning allows."""

    def __init__(self, hook):
        super().__init__()
        self.hook, self.block = hook, nn.Identity()

    def build(self):
        if isinstance(self.block, nn.Identity):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.block = ODEBlock(lively(ClockField()), AdaptiveSolver(first_step="previous"))

    def setup(self, stage):
        if self.hook == "setup":
            self.build()

    def configure_model(self):
        if self.hook == "configure_model":
            self.build()

    def forward(self, y0):
        return self.block(y0)


def callbacks():
    penalty = PenaltyCallback(KineticEnergy(0.1), seed=0)
    return [SteerCallback(0.5, seed=0), penalty, StepMemories(), TrainingClock(), SolverGuard()]


def states(trainer):
    return [callback.state_dict() for callback in trainer.callbacks[:5]]


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_from_a_checkpoint_leaves_the_state_of_the_training(tmp_path, hook, stage):
    trainer = tiny_trainer(*callbacks(), max_epochs=1)
    trainer.fit(seeded(Remembering, hook), tiny_loader(), tiny_loader())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, tiny_loader(), tiny_loader())
    before = states(trainer)
    assert before[0]["step"] == 4
    assert before[2]["block"]
    assert len(before[3]["checks"]) == 2
    getattr(trainer, stage)(
        trainer.lightning_module, tiny_loader(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert states(trainer) == before
    again = tiny_trainer(*callbacks(), max_epochs=1)
    again.fit(seeded(Remembering, hook), tiny_loader(), ckpt_path=tmp_path / "first.ckpt")
    assert states(again)[2] == torch.load(tmp_path / "first.ckpt")["callbacks"]["StepMemories"]


def test_a_new_training_starts_anew():
    guard, clock = SolverGuard(), TrainingClock()
    guard.skipped = 3
    for _ in range(2):
        tiny_trainer(guard, clock).fit(seeded(Remembering, "setup"), tiny_loader(), tiny_loader())
    assert guard.skipped == 0
    assert [check.step for check in clock.checks] == [2]


def test_what_a_loader_leaves_out_is_no_batch():
    """Lightning passes over a ``None`` in the place of a batch, and tells of its end alone."""

    class LeavesOut(DataLoader):
        def __iter__(self):
            yield from (None, *super().__iter__(), None)

        def __len__(self):
            return super().__len__() + 2

    found = []
    for loader in (LeavesOut, DataLoader):
        clock, every = TrainingClock(), callbacks()
        trainer = tiny_trainer(*every[:3], clock, *every[4:], NFEMonitor())
        trainer.fit(seeded(OwnModel), loader(tiny_data(8), batch_size=4))
        found.append((trainer.callback_metrics["train/nfe_forward_epoch"], every[0]._step))
        assert clock.totals["seconds"] < 600.0
        assert clock.totals["nfe_forward"] == 2 * float(found[-1][0])
    assert found[0] == found[1]
