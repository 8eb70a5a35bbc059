"""Cost of the callback: the same Lightning training steps with and without it.

The end time is drawn from so narrow an interval that the solver takes the same steps: what is
measured is the drawing, the warp and the logging, and not that other end times need other work.
"""

import logging
import time
import warnings

import torch
from pytorch_lightning import Callback, Trainer

from benchmarks.timing import table
from datamodules import ToyDensityDataModule
from steer_lightning import SteerCallback
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField

STEPS = 60
ROUNDS = 5


class StepTimer(Callback):
    """Seconds from one batch's end to the next, the callbacks' hooks included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        """Take the time."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Durations, without the first steps."""
        return [b - a for a, b in zip(self.ends[5:-1], self.ends[6:], strict=True)]


def fit(callbacks: list[Callback]) -> list[float]:
    """Train the toy flow from one seed; seconds of each step."""
    torch.manual_seed(0)
    module = CNFModule(CNF(ConcatSquashField(2, (64, 64, 64)), (2,)))
    timer = StepTimer()
    trainer = Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[*callbacks, timer],
    )  # fmt: skip
    trainer.fit(module, ToyDensityDataModule(n_train=50_000, batch_size=512))
    return timer.seconds()


def run() -> str:
    """Measure, and tell as a Markdown table."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    without: list[float] = []
    with_steer: list[float] = []
    fit([])  # warms up
    for _ in range(ROUNDS):
        without += fit([])
        with_steer += fit([SteerCallback(b=1e-6, seed=0)])
    before, after = (torch.tensor(s).median().item() for s in (without, with_steer))
    row = [f"{1e3 * before:.2f}", f"{1e3 * after:.2f}", f"{100 * (after / before - 1):+.1f} %"]
    return table(["ms a step without", "with SteerCallback", "cost"], [row])


if __name__ == "__main__":
    print(run())
