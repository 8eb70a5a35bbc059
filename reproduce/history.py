"""What training had cost at each validation."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from reproduce.experiments import Check
from steer_lightning.steering.targets import find_stats


class History(Callback):
    """Keep metrics, evaluations and time of every validation, also across a resume.

    Seconds and evaluations are those of training batches, without validation, checkpoints and
    plots. It belongs behind the other callbacks: some count evaluations from zero at the start
    of each batch.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._totals = {
            "seconds": 0.0,
            "cpu_seconds": 0.0,
            "nfe_forward": 0.0,
            "nfe_backward": 0.0,
        }
        self._before: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Read the clocks."""
        self._before = _read(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add what the batch took."""
        for name, value in _read(pl_module).items():
            self._totals[name] += value - self._before[name]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the check, unless it is the sanity check."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self.checks.append(
            Check(trainer.global_step, trainer.current_epoch, **self._totals, metrics=metrics)
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"checks": [check._asdict() for check in self.checks], "totals": self._totals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the checks of a checkpoint."""
        self.checks = [Check(**check) for check in state_dict["checks"]]
        self._totals = dict(state_dict["totals"])


def _read(pl_module: LightningModule) -> dict[str, float]:
    stats = find_stats(pl_module).values()
    return {
        "seconds": time.perf_counter(),
        "cpu_seconds": time.process_time(),
        "nfe_forward": float(sum(s.nfe_forward for s in stats)),
        "nfe_backward": float(sum(s.nfe_backward for s in stats)),
    }
