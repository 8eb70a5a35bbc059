"""First steps that are resumed exactly, and equal on all ranks."""

import math
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from steer_lightning.callbacks.run_state import RunState
from steer_lightning.solvers.step_memory import StepMemory
from steer_lightning.steering.targets import plain_path

DIRECTIONS = (1, -1)


class StepMemories(RunState):
    """Save, resume and agree on the first steps of blocks with ``first_step="previous"``.

    They are saved with a checkpoint and go on exactly after a resume. Several processes all take
    the shortest step of any, by one reduction after each training batch. Modules of this library
    add this callback themselves where a solver asks for it.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[StepMemories()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._memories: dict[str, StepMemory] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._memories = find_step_memories(pl_module)  # for who looks before the start, too

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._memories = find_step_memories(pl_module)  # the state is loaded after this

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._memories = find_step_memories(pl_module)

    def start_anew(self) -> None:
        """The steps are the model's."""

    def state_dict(self) -> dict[str, Any]:
        return {path: dict(memory.steps) for path, memory in self._memories.items()}

    def go_on(self, state_dict: dict[str, Any]) -> None:
        for path, memory in self._memories.items():
            memory.steps = dict(state_dict.get(path, {}))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        places = [(memory, d) for memory in self._memories.values() for d in DIRECTIONS]
        if trainer.world_size == 1 or not places:
            return
        own = [memory.steps.get(d, (0.0, math.inf))[1] for memory, d in places]
        lengths = torch.tensor(own, dtype=torch.float64, device=pl_module.device)
        shortest: Any = trainer.strategy.reduce(lengths, reduce_op="min")
        for (memory, d), length in zip(places, shortest.tolist(), strict=True):
            if d in memory.steps:
                memory.steps[d] = (memory.steps[d][0], length)


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
        plain_path(path): module.step_memory
        for path, module in model.named_modules()
        if isinstance(getattr(module, "step_memory", None), StepMemory)
        and getattr(module.solver, "remembers", False)
    }
