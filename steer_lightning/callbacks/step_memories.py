"""First steps that are resumed exactly, and equal on all ranks."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from steer_lightning.solvers.step_memory import StepMemory

DIRECTIONS = (1, -1)


class StepMemories(Callback):
    """Keep the steps that blocks with ``first_step="previous"`` begin with.

    They are saved with a checkpoint and go on exactly after a resume. With several processes the
    shortest step of all ranks is everyone's, by one reduction after each training batch. Modules
    of this library add this callback themselves where a solver asks for it.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[StepMemories()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._memories: dict[str, StepMemory] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the blocks that remember."""
        self._memories = find_step_memories(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Steps by the path of their block, and by direction."""
        return {path: dict(memory.steps) for path, memory in self._memories.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin where the last run ended."""
        for path, steps in state_dict.items():
            if path in self._memories:
                self._memories[path].steps = dict(steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take the shortest step of all ranks."""
        if trainer.world_size == 1 or not self._memories:
            return
        none = (0.0, math.inf)
        memories = [memory.steps for memory in self._memories.values()]
        lengths = torch.tensor(
            [[steps.get(d, none)[1] for d in DIRECTIONS] for steps in memories],
            dtype=torch.float64,
            device=pl_module.device,
        )
        torch.distributed.all_reduce(lengths, torch.distributed.ReduceOp.MIN)
        for steps, shortest in zip(memories, lengths.tolist(), strict=True):
            for direction, length in zip(DIRECTIONS, shortest, strict=True):
                if direction in steps:
                    steps[direction] = (steps[direction][0], length)


def find_step_memories(model: nn.Module) -> dict[str, StepMemory]:
    """Memories of the blocks whose training solver uses them, by path.

    Example:
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> from steer_lightning.solvers import AdaptiveSolver
        >>> block = ODEBlock(MLPField(2, (4,)), AdaptiveSolver(first_step="previous"))
        >>> list(find_step_memories(nn.Sequential(block, ODEBlock(MLPField(2, (4,))))))
        ['0']
    """
    return {
        path: module.step_memory
        for path, module in model.named_modules()
        if isinstance(getattr(module, "step_memory", None), StepMemory)
        and getattr(module.solver, "remembers", False)
    }
