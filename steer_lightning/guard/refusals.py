"""Ways of training whose batches cannot be dropped or solved again."""

from inspect import signature

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer

from steer_lightning.guard.agreement import can_agree
from steer_lightning.solvers.replacing import on_fixed_grid, replaced_solvers


def refuse_unguardable(trainer: Trainer, pl_module: LightningModule, policy: str) -> None:
    """Raise if batches cannot be dropped or solved again."""
    asked = f"SolverGuard(policy={policy!r})"
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
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise MisconfigurationException(
                f"Expected an optimiser that evaluates once a step with {asked}, but got LBFGS: a "
                f"later evaluation may fail when the weights have moved already. Use "
                f"policy='raise'."
            )
    if policy == "fallback":
        if "dataloader_iter" in signature(pl_module.training_step).parameters:
            raise MisconfigurationException(
                f"Expected a training_step that is given its batch with {asked}, but that of "
                f"{type(pl_module).__name__} takes `dataloader_iter`: run again, it would fetch "
                f"another batch. Use policy='skip'."
            )
        with replaced_solvers(pl_module, on_fixed_grid(1)) as replaced:
            if not replaced:
                raise MisconfigurationException(
                    f"Expected a model with a TorchdiffeqSolver or DenseSolver with {asked}, but "
                    f"{type(pl_module).__name__} holds none: there is nothing to put on a fixed "
                    f"grid. Use policy='skip', or blocks of steer_lightning.nn."
                )
