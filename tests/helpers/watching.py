"""Callbacks that note what a run does, and what there is to compare afterwards."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

# Tensors, in containers too, to the last bit.
assert_same = partial(torch.testing.assert_close, rtol=0.0, atol=0.0)


def weights(module: nn.Module) -> Tensor:
    """All parameters of a module as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Log(pl.Callback):
    """What is logged after each training batch and each validation, and the losses."""

    def __init__(self) -> None:
        self.train: list[dict[str, float]] = []
        self.val: list[dict[str, float]] = []
        self.losses: list[float | None] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.train.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.losses.append(float(outputs["loss"]) if outputs else None)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.val.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class RecordRates(pl.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
