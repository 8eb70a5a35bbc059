"""Ways of training whose batches cannot be dropped."""

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer

from steer_lightning.guard.agreement import can_agree


def refuse_undroppable(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise if batches cannot be dropped."""
    asked = "SolverGuard(policy='skip')"
    if trainer.world_size > 1 and not can_agree(trainer, pl_module):
        raise MisconfigurationException(
            f"Expected DistributedDataParallel (strategy='ddp') without synchronised batch norm "
            f"for {asked} on {trainer.world_size} processes, but got the strategy "
            f"{type(trainer.strategy).__name__} with {type(pl_module).__name__}: its ranks meet "
            f"inside the training step, where one whose solve failed would be missing. Use "
            f"strategy='ddp' and layers that do not synchronise, or policy='raise'."
        )
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"Expected automatic optimisation with {asked}, but {type(pl_module).__name__} "
            f"optimises by hand: which of its steps belong to a failed solve is for its own "
            f"training_step to know. Catch SolverError there, and use policy='raise'."
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise MisconfigurationException(
            f"Expected an optimiser that evaluates once a step with {asked}, but got LBFGS: a "
            f"later evaluation may fail when the weights have moved already. Use policy='raise'."
        )
