"""What the ranks of a run tell each other of failed solves."""

from typing import Any, Final, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steer_lightning.callbacks.step_memories import StepMemories
from steer_lightning.solvers import SolverError
from steer_lightning.utils.patching import WrappedMethods

Outcome = Literal["fine", "fallback", "skipped"]

_ORDER: Final = ("fine", "fallback", "skipped")


def worst(*outcomes: Outcome) -> Outcome:
    """The worst of several outcomes.

    Example:
        >>> worst("fine", "skipped", "fallback")
        'skipped'
    """
    return max(outcomes, key=_ORDER.index)


def can_agree(trainer: Trainer, module: LightningModule) -> bool:
    """Whether there are ranks that could all hear of a failure in one of them.

    A rank whose solve fails leaves out what its training step would have done next. Under
    ``DistributedDataParallel`` the ranks meet after the step, in the backward pass; where they
    meet inside it (manual optimisation, synchronised batch norm, sharded parameters), it is too
    late.
    """
    return (
        trainer.world_size > 1
        and isinstance(trainer.strategy.model, DistributedDataParallel)
        and module.automatic_optimization
        and not any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())
    )


def agree(
    trainer: Trainer,
    outcome: Outcome,
    error: SolverError | None,
    memories: StepMemories | None = None,
) -> tuple[Outcome, SolverError | None]:
    """Tell all ranks what became of a batch, and hear the worst; all ranks must call it.

    While nothing fails anywhere this is one reduction.

    Args:
        trainer: The trainer.
        outcome: What became of this rank's part of the batch.
        error: What failed on this rank.
        memories: First steps of the next batch, which take part in the reduction.

    Returns:
        The worst outcome of all ranks, and the error of the lowest rank that has one.
    """
    device = trainer.strategy.root_device
    told_fine = torch.tensor([float(error is None)], dtype=torch.float64, device=device)
    own = [told_fine] if memories is None else [told_fine, memories.lengths(device)]
    all_fine, *shortest = trainer.strategy.reduce(torch.cat(own), reduce_op="min").split(
        [len(part) for part in own]
    )
    if memories is not None:
        memories.take(*shortest)
    if bool(all_fine):
        return "fine", None
    told: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(told, (outcome, error))
    return worst(*(o for o, _ in told)), next(e for _, e in told if e is not None)


class LateLogs:
    """Keeps what a training step logs until the ranks have agreed to log it.

    Lightning reduces some values at once, and others at the end of an epoch by their names. A
    rank whose solve failed would not take part, or not know the name.

    Args:
        module: The module, whose ``log`` is wrapped inside the context.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._methods = WrappedMethods(module)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __enter__(self) -> None:
        self._methods.wrap("log", lambda _, *args, **kwargs: self._calls.append((args, kwargs)))

    def __exit__(self, *_: object) -> None:
        self._methods.release()

    def forget(self) -> None:
        """Drop what is kept: the step runs again, or was for nothing."""
        self._calls = []

    def replay(self) -> None:
        """Log what is kept."""
        for args, kwargs in self._calls:
            self._module.log(*args, **kwargs)
