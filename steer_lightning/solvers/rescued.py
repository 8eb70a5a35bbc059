"""Adjoints whose failure is somebody's decision, and no exception out of a backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer_lightning.solvers.base import Solution, SolveStats
from steer_lightning.solvers.errors import SolverError
from steer_lightning.utils.problem import VectorField, trainable_tensors

Gradients = Sequence[Tensor | None]
# Given the error and a way to the gradients by another method `solve`; what it returns is taken
# for the gradients, zero for None.
Rescue = Callable[[SolverError, Callable[[Callable[..., Any]], Gradients]], Gradients | None]


class RescuedAdjoint:
    """A solver's ``solve`` whose adjoint, when it fails, asks what to do.

    An exception in a backward pass breaks it off, and with it whatever waits for its gradients: a
    reduction over processes, which other ranks are already in. Here the backward pass goes on
    with the gradients that ``rescue`` finds, or with zeros. The values of the solve are untouched,
    and so are its gradients unless it fails. As an adjoint does, another solver evaluates the
    field outside of autocast then.

    Args:
        solve: The method ``solve`` of a solver with ``gradient="adjoint"``.
        rescue: Called in the backward pass with the error, and with a function that gives the
            gradients of the same solve by another ``solve`` (and may fail like it).

    Example:
        >>> from steer_lightning.nn import MLPField
        >>> from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
        >>> field, y0 = MLPField(1, (4,)), torch.ones(1, 1)
        >>> adjoint = TorchdiffeqSolver(rtol=1e-9, gradient="adjoint", max_nfe=20)
        >>> rescue = lambda error, gradients_by: gradients_by(FixedGridSolver().solve)
        >>> solve = RescuedAdjoint(adjoint.solve, rescue)
    """

    def __init__(self, solve: Callable[..., Any], rescue: Rescue) -> None:
        self.solve = solve
        self.rescue = rescue

    def __call__(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
        **options: Any,
    ) -> Solution:
        """Solve; see :meth:`steer_lightning.solvers.Solver.solve`."""
        stats = SolveStats() if stats is None else stats
        if not torch.is_grad_enabled():
            solution: Solution = self.solve(vector_field, y0, t_eval, stats=stats, **options)
            return solution
        is_tuple = isinstance(y0, tuple)

        def run(
            solve: Callable[..., Any], stats: SolveStats, t_eval: Tensor, parts: tuple[Tensor, ...]
        ) -> tuple[Tensor, ...]:
            ys = solve(
                vector_field, parts if is_tuple else parts[0], t_eval, stats=stats, **options
            ).ys
            return tuple(ys) if is_tuple else (ys,)

        ys = _Enclosed.apply(
            self, run, stats, len(y0) if is_tuple else 1,
            t_eval, *(y0 if is_tuple else (y0,)), *trainable_tensors(vector_field),
        )  # fmt: skip
        return Solution(ys if is_tuple else ys[0], stats)


class _Enclosed(torch.autograd.Function):
    """A solve with an autograd graph of its own, out of which no solver's error comes."""

    @staticmethod
    def forward(
        ctx: Any,
        rescued: RescuedAdjoint,
        run: Callable[..., tuple[Tensor, ...]],
        stats: SolveStats,
        n_parts: int,
        t_eval: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        def graph(
            solve: Callable[..., Any], stats: SolveStats
        ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            # Times and states are cut off; parameters are the same tensors inside and outside.
            cut = (t_eval, *tensors[:n_parts])
            inputs = [x.detach().requires_grad_(x.requires_grad) for x in cut]
            inputs += tensors[n_parts:]
            with torch.enable_grad():
                return run(solve, stats, inputs[0], tuple(inputs[1 : 1 + n_parts])), inputs

        ctx.rescued, ctx.stats, ctx.graph = rescued, stats, graph
        ctx.ys, ctx.inputs = graph(rescued.solve, stats)
        return tuple(y.detach() for y in ctx.ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        def gradients_by(solve: Callable[..., Any]) -> Gradients:
            stats = SolveStats()
            try:
                ys, inputs = ctx.graph(solve, stats)
                return _gradients(ys, inputs, cotangents)
            finally:
                ctx.stats.nfe_backward += stats.nfe_forward + stats.nfe_backward

        try:
            gradients: Gradients | None = _gradients(ctx.ys, ctx.inputs, cotangents)
        except SolverError as error:
            gradients = ctx.rescued.rescue(error, gradients_by)
        if gradients is None:
            gradients = [torch.zeros_like(x) if x.requires_grad else None for x in ctx.inputs]
        return (None, None, None, None, *gradients)


def _gradients(
    ys: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients for each input, ``None`` for those that want none or have no part in ``ys``."""
    wanted = [x for x in inputs if x.requires_grad]
    pairs = [(y, c) for y, c in zip(ys, cotangents, strict=True) if y.requires_grad]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], wanted, [c for _, c in pairs],
            retain_graph=True, allow_unused=True,
        )
    )  # fmt: skip
    return [next(found) if x.requires_grad else None for x in inputs]
