"""What a run keeps of its checks, and that a stopped run ends where an unbroken one does."""

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from datamodules import ToyDensityDataModule
from reproduce.history import History
from steer_lightning.callbacks import NFEMonitor
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField
from steer_lightning.solvers import FixedGridSolver


class Spy(Callback):
    """The forward evaluations that NFEMonitor logs for each batch."""

    def __init__(self):
        self.nfe = []

    def on_train_batch_end(self, trainer, *_):
        self.nfe.append(trainer.callback_metrics["train/nfe_forward"].item())


def fit(callbacks, **arguments):
    torch.manual_seed(0)
    solver = FixedGridSolver("rk4", n_steps=3)
    module = CNFModule(CNF(ConcatSquashField(2, (4,)), (2,), solver))
    data = ToyDensityDataModule(n_train=16, n_val=4, n_test=4, batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("monitored", [True, False])
def test_evaluations_are_those_of_training_batches(monitored):
    history, spy = History(), Spy()
    before = [NFEMonitor(), spy] if monitored else []
    fit([*before, history], max_epochs=2, val_check_interval=2)
    assert [check.step for check in history.checks] == [2, 4, 6, 8]
    assert [check.epoch for check in history.checks] == [0, 0, 1, 1]
    assert [check.nfe_forward for check in history.checks] == [24.0, 48.0, 72.0, 96.0]
    assert spy.nfe == ([12.0] * 8 if monitored else [])
    assert all("val/nll" in check.metrics for check in history.checks)
    assert not any(name.startswith("train") for c in history.checks for name in c.metrics)


def test_time_grows_and_leaves_validation_out():
    class SlowCheck(Callback):
        def on_validation_start(self, trainer, pl_module):
            # A clock that is read in validation would have to count this.
            clock[0] += 1000.0

    clock = [0.0]
    history = History()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "reproduce.history.time.perf_counter",
            lambda: clock.__setitem__(0, clock[0] + 1) or clock[0],
        )
        fit([SlowCheck(), history], max_epochs=2)
    assert [check.seconds for check in history.checks] == [4.0, 8.0]
    assert history.checks[1].cpu_seconds > history.checks[0].cpu_seconds > 0.0


def test_sanity_check_and_later_validation_are_no_checks():
    history = History()
    trainer = fit([history], max_epochs=1, num_sanity_val_steps=1)
    assert len(history.checks) == 1
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)
    assert len(history.checks) == 1


def test_state_goes_on():
    first, second = History(), History()
    fit([first], max_epochs=1)
    second.load_state_dict(first.state_dict())
    assert second.checks == first.checks
    fit([second], max_epochs=1)
    assert [check.nfe_forward for check in second.checks] == [48.0, 96.0]
    assert len(first.checks) == 1
