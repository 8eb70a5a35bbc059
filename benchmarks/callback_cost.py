"""Cost of the callback: training steps of the toy flow with and without it, in turns.

One fit, whose odd batches the callback leaves alone. The end time is drawn from so narrow an
interval that the solver takes the same steps: what is measured is drawing, warping and logging,
and not that other end times need other work.
"""

import logging
import time
import warnings
from statistics import median
from typing import Any

import torch
from pytorch_lightning import Trainer

from benchmarks.timing import table
from datamodules import ToyDensityDataModule
from steer_lightning import SteerCallback
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField

STEPS = 600


class EveryOtherBatch(SteerCallback):
    """STEER on even batches, with the CPU seconds of every batch, hooks included, no logger."""

    def __init__(self) -> None:
        super().__init__(b=1e-6, seed=0)
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock, and STEER if it is its turn."""
        self._start = time.process_time()
        if args[-1] % 2 == 0:
            super().on_train_batch_start(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        """STEER if it is its turn, and stop the clock."""
        if args[-1] % 2 == 0:
            super().on_train_batch_end(*args)
        self.seconds[args[-1] % 2].append(time.process_time() - self._start)


def run() -> str:
    """Measure, and tell as a Markdown table."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    module = CNFModule(CNF(ConcatSquashField(2, (64, 64, 64)), (2,)))
    steer = EveryOtherBatch()
    trainer = Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[steer],
    )  # fmt: skip
    trainer.fit(module, ToyDensityDataModule(n_train=512 * STEPS, batch_size=512))
    after, before = (median(seconds[10:]) for seconds in steer.seconds)
    row = [f"{1e3 * before:.2f}", f"{1e3 * after:.2f}", f"{100 * (after / before - 1):+.1f} %"]
    return table(["CPU ms a step without", "with SteerCallback", "cost"], [row])


if __name__ == "__main__":
    print(run())
