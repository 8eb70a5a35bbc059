"""Failures that all ranks of a run hear of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from steer_lightning.solvers import SolverError
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.patching import WrappedMethods


def is_ddp(strategy: object) -> bool:
    """Whether a strategy is DDP, of ``pytorch_lightning`` or ``lightning.pytorch``.

    DeepSpeed's strategy is a subclass of it, but its ranks meet elsewhere.
    """
    ddp, deepspeed = (
        is_lightning(strategy, "strategies", name) for name in ("DDPStrategy", "DeepSpeedStrategy")
    )
    return ddp and not deepspeed


def can_agree(trainer: Trainer, module: LightningModule) -> bool:
    """Whether there are ranks that could all hear of a failure in one of them in training.

    Under DDP the ranks meet after the step, in the backward pass. Where they meet inside it
    (manual optimisation, synchronised batch norm, sharded parameters), a failed one is missing.
    """
    return (
        trainer.world_size > 1
        and is_ddp(trainer.strategy)
        and module.automatic_optimization
        and not any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())
    )


def agree(trainer: Trainer, error: SolverError | None) -> SolverError | None:
    """Tell all ranks, which must all call it, the error of the lowest rank that has one.

    While nothing fails anywhere this is one reduction.
    """
    if trainer.strategy.reduce_boolean_decision(error is None, all=True):
        return None
    told: list[SolverError | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(told, error)
    return next(e for e in told if e is not None)


@contextmanager
def late_logs(module: LightningModule) -> Iterator[Callable[[], None]]:
    """Keep what a training step logs, and yield a function that logs it afterwards.

    Lightning reduces some values at once, and others at the end of an epoch by their names. A
    rank whose solve failed would not take part, or not know the name.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def replay() -> None:
        for args, kwargs in calls:
            module.log(*args, **kwargs)

    methods = WrappedMethods(module)
    methods.wrap("log", lambda _, *args, **kwargs: calls.append((args, kwargs)))
    try:
        yield replay
    finally:
        methods.release()
