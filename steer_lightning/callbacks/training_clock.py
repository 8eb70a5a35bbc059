"""The cost of training, without evaluation."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer

from steer_lightning.callbacks.run_state import RunState
from steer_lightning.solvers import SolveStats
from steer_lightning.steering.targets import find_stats


class Check(NamedTuple):
    """A validation: the cost of training until then, and the metrics."""

    step: int
    epoch: int
    seconds: float
    cpu_seconds: float
    nfe_forward: float
    nfe_backward: float
    metrics: Mapping[str, float]


class TrainingClock(RunState):
    """Log the time spent in training batches so far, and keep it beside each validation.

    ``train/seconds`` is wall-clock time, ``train/cpu_seconds`` the processor time of all threads
    of this process: on a CPU that other work shares, the fairer of the two. Both leave out
    validation, checkpoints and plots, and continue after a resume. On another device a batch
    begins and ends when the device is done with all that it was given before. ``checks`` holds a
    ``Check`` for each validation of ``fit``, with the evaluations of the blocks of this
    library until then, whose counts begin at zero in each training batch.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[TrainingClock()], logger=False)
    """

    def __init__(self) -> None:
        self.start_anew()
        self._started = (0.0, 0.0)
        self._stats: list[SolveStats] = []

    def start_anew(self) -> None:
        self.totals = dict.fromkeys(("seconds", "cpu_seconds", "nfe_forward", "nfe_backward"), 0.0)
        self.checks: list[Check] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stats = list(find_stats(pl_module).values())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for stats in self._stats:
            stats.reset()
        _wait_for(pl_module.device)
        self._started = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if outputs is None:  # the loader gave none: no batch has begun
            return
        _wait_for(pl_module.device)
        self.totals["seconds"] += time.perf_counter() - self._started[0]
        self.totals["cpu_seconds"] += time.process_time() - self._started[1]
        for name in ("nfe_forward", "nfe_backward"):
            self.totals[name] += sum(getattr(stats, name) for stats in self._stats)
        pl_module.log_dict({f"train/{k}": self.totals[k] for k in ("seconds", "cpu_seconds")})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        logged = trainer.callback_metrics
        metrics = {name: float(v) for name, v in logged.items() if name.startswith("val/")}
        self.checks.append(
            Check(trainer.global_step, trainer.current_epoch, **self.totals, metrics=metrics)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals, "checks": [check._asdict() for check in self.checks]}

    def go_on(self, state_dict: dict[str, Any]) -> None:
        self.totals = dict(state_dict["totals"])
        self.checks = [Check(**check) for check in state_dict["checks"]]


def _wait_for(device: torch.device) -> None:
    """Until a GPU has done its work: kernels are queued, and a clock would read too early."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
