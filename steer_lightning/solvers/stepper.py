"""The steps of one solve: counted, and compiled or repeated in the backward pass if asked."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from steer_lightning.solvers.runge_kutta import Time, runge_kutta_step
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.solvers.work import Work
from steer_lightning.utils.compiling import compiled
from steer_lightning.utils.problem import VectorField, default_times


class Stepper:
    """Takes Runge-Kutta steps of a vector field.

    Args:
        vector_field: ``f(t, y)``.
        tableau: The method.
        work: Counts the evaluations, those repeated in a backward pass too.
        compile: Compile the step.
        cuda_graphs: Replay it as a CUDA graph.
        checkpoint: Keep only what a step starts from, and repeat it in the backward pass.
    """

    def __init__(
        self,
        vector_field: VectorField,
        tableau: Tableau,
        work: Work,
        compile: bool = False,
        cuda_graphs: bool = False,
        checkpoint: bool = False,
    ) -> None:
        self.vector_field = vector_field
        self.tableau = tableau
        self.work = work
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.checkpoint = checkpoint

    def __call__(
        self, start: Time, end: Time, y: Any, first_stage: Any | None = None
    ) -> tuple[Any, list[Any]]:
        """State at ``end`` and stages; see :func:`runge_kutta_step`."""
        if self.checkpoint and torch.is_grad_enabled():
            result: tuple[Any, list[Any]] = recompute_in_backward(
                self._step, start, end, y, first_stage, use_reentrant=False
            )
            return result
        return self._step(start, end, y, first_stage)

    def _step(
        self, start: Time, end: Time, y: Any, first_stage: Any | None
    ) -> tuple[Any, list[Any]]:
        self.work.spend(len(self.tableau.c) - (first_stage is not None), start)
        step: Any = runge_kutta_step
        if self.compile:  # as tensors, times are no constants of the graph
            step = compiled(runge_kutta_step, self.cuda_graphs)
            start, end = (
                t if isinstance(t, Tensor) else default_times(y, t)[0] for t in (start, end)
            )
        result: tuple[Any, list[Any]] = step(
            self.vector_field, start, end, y, first_stage, self.tableau
        )
        return result
