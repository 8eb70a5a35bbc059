"""Wrap the solves of a model's solvers; keep an adjoint's failure inside the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.errors import SolverError
from steer_lightning.utils.patching import WrappedMethods
from steer_lightning.utils.problem import VectorField, parts, trainable_tensors


@contextmanager
def wrapped_solves(
    model: nn.Module,
    wrapper: Callable[..., Any],
    where: Callable[[Solver], bool] = lambda solver: True,
) -> Iterator[None]:
    """Wrap the method ``solve`` of a model's solvers, those in containers too, and unwrap it.

    Called in its place is ``wrapper(solve, vector_field, y0, t_eval, **options)``, for the
    solvers that ``where`` says.
    """
    solvers = [WrappedMethods(solver) for solver in find_solvers(model) if where(solver)]
    try:
        for methods in solvers:
            methods.wrap("solve", wrapper)
        yield
    finally:
        for methods in solvers:
            methods.release()


def find_solvers(model: nn.Module) -> list[Solver]:
    """Every solver that a model's modules hold, in containers too, each once."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    found = (
        solver for value in attributes for solver in _flat(value) if isinstance(solver, Solver)
    )
    return list({id(solver): solver for solver in found}.values())


def _flat(value: Any) -> Iterator[Any]:
    """A value, or those that a container holds."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def has_adjoint(solver: Solver) -> bool:
    """Whether a solver integrates an adjoint equation, which may fail in the backward pass."""
    return getattr(solver, "gradient", None) == "adjoint"


def is_scaled(device: torch.device) -> bool:
    """Whether networks compute in float16, where a loss is scaled until its gradients overflow."""
    low = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return low == torch.float16


def solve_enclosed(
    failed: Callable[[SolverError], None],
    solve: Callable[..., Any],
    vector_field: VectorField,
    y0: Any,
    t_eval: Tensor,
    *,
    stats: SolveStats | None = None,
    **options: Any,
) -> Solution:
    """Solve so that an adjoint that fails gives zero gradients instead of an exception.

    An exception breaks a backward pass off, and with it a reduction of gradients over processes in
    which other ranks wait. Values, and gradients that do not fail, are those of ``solve``;
    ``failed`` is called in the backward pass with the error of an adjoint. Where the loss is
    scaled, for float16, a gradient that overflows is no failure: it gives NaN, without a solve,
    for the scaler to see.
    """
    stats = SolveStats() if stats is None else stats
    if not torch.is_grad_enabled():
        return solve(vector_field, y0, t_eval, stats=stats, **options)
    is_tuple = isinstance(y0, tuple)

    def run(t_eval: Tensor, *y0: Tensor) -> tuple[Tensor, ...]:
        state = y0 if is_tuple else y0[0]
        return parts(solve(vector_field, state, t_eval, stats=stats, **options).ys)

    cut = (t_eval, *parts(y0))
    ys = _Enclosed.apply(run, failed, len(cut), *cut, *trainable_tensors(vector_field))
    return Solution(ys if is_tuple else ys[0], stats)


class _Enclosed(torch.autograd.Function):
    """A solve with an autograd graph of its own, out of which no solver's error comes."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., tuple[Tensor, ...]],
        failed: Callable[[SolverError], None],
        n_cut: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        # Times and states are cut off; parameters are the same tensors inside and outside.
        cut = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:n_cut]]
        with torch.enable_grad():
            ctx.ys = run(*cut)
        ctx.failed, ctx.inputs = failed, [*cut, *tensors[n_cut:]]
        ctx.scaled = is_scaled(cut[1].device)
        return tuple(y.detach() for y in ctx.ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.inputs if x.requires_grad]
        pairs = [(y, c) for y, c in zip(ctx.ys, cotangents, strict=True) if y.requires_grad]
        found: Sequence[Tensor | None]
        if ctx.scaled and not all(bool(c.isfinite().all()) for _, c in pairs):
            found = [torch.full_like(x, torch.nan) for x in wanted]
        else:
            try:
                found = torch.autograd.grad(
                    [y for y, _ in pairs], wanted, [c for _, c in pairs],
                    retain_graph=True, allow_unused=True,
                )  # fmt: skip
            except SolverError as error:
                ctx.failed(error)
                found = [torch.zeros_like(x) for x in wanted]
        left = iter(found)
        return None, None, None, *(next(left) if x.requires_grad else None for x in ctx.inputs)
