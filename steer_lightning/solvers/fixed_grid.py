"""Runge-Kutta on a fixed number of steps: a static graph that compiles once, whatever T is."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from steer_lightning.functional.choices import check_choice
from steer_lightning.functional.compiling import compiled
from steer_lightning.solvers.base import (
    Phase,
    Solution,
    Solver,
    SolveStats,
    VectorField,
    check_problem,
)


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: stage times, stage weights, solution weights."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


UNITS: Final = ("step", "solve")
TABLEAUS: Final = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(  # Kutta's 3/8 rule, as in torchdiffeq
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}


class FixedGridSolver(Solver):
    r"""Explicit Runge-Kutta with ``n_steps`` equal steps in each interval of ``t_eval``.

    Times are tensors and the number of steps is a setting, so that shapes never change: a solve
    compiled once serves every end time. Gradients are autograd's, through the steps and in the
    times too.

    Args:
        method: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"`` (the 3/8 rule).
        n_steps: Steps in each interval of ``t_eval``.
        compile: What to compile with :func:`torch.compile`: each ``"step"``, or the whole
            ``"solve"``. All fields of one structure share a compilation. It needs a C++ compiler
            and pays after some hundred steps of training; a step is compiled sooner than a solve.
        cuda_graphs: Replay what is compiled as CUDA graphs; without effect on a CPU.
        checkpoint: Keep only the state at each step and evaluate the step again in the backward
            pass: memory of one step instead of all, for one more forward pass of work.

    Raises:
        ValueError: If ``method`` or ``compile`` is unknown, ``n_steps < 1``, a compiled solve is
            to be checkpointed, or ``cuda_graphs`` is asked for without ``compile``.

    Example:
        >>> solver = FixedGridSolver(method="rk4", n_steps=8)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))
        >>> round(solution.ys[-1].item(), 4), solution.stats.nfe_forward
        (0.3679, 32)
    """

    def __init__(
        self,
        method: Literal["euler", "midpoint", "heun", "rk4"] = "rk4",
        n_steps: int = 4,
        compile: Literal["step", "solve"] | None = None,
        cuda_graphs: bool = False,
        checkpoint: bool = False,
    ) -> None:
        check_choice("method", method, TABLEAUS)
        if compile is not None:
            check_choice("compile", compile, UNITS)
        if n_steps < 1:
            raise ValueError(f"Expected `n_steps` >= 1, but got {n_steps}.")
        if compile == "solve" and checkpoint:
            raise ValueError(
                "Expected one of compile='solve' and checkpoint, but got both: a compiled solve "
                "plans its own memory. Compile the step, or turn checkpoint off."
            )
        if cuda_graphs and compile is None:
            raise ValueError(
                "Expected compile='step' or 'solve' with cuda_graphs=True, which replays what is "
                "compiled, but got compile=None."
            )
        self.method = method
        self.n_steps = n_steps
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.checkpoint = checkpoint

    def __repr__(self) -> str:
        return f"FixedGridSolver(method={self.method!r}, n_steps={self.n_steps})"

    def solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
    ) -> Solution:
        """Integrate; see :meth:`Solver.solve`."""
        check_problem(y0, t_eval)
        stats = SolveStats() if stats is None else stats
        n_steps = self.n_steps * (len(t_eval) - 1)
        if self.compile == "solve":
            solve = compiled(integrate, self.cuda_graphs)
            ys = solve(vector_field, y0, t_eval, self.method, self.n_steps)
            stats.count_evaluation("forward", n_steps * len(TABLEAUS[self.method].c))
        else:
            counted = _CountedStep(self._step(), stats)
            step: Callable[..., Any] = counted
            if self.checkpoint and torch.is_grad_enabled():
                step = partial(recompute_in_backward, counted, use_reentrant=False)
            ys = integrate(vector_field, y0, t_eval, self.method, self.n_steps, step)
            counted.phase = "backward"
        stats.accepted += n_steps
        return Solution(ys, stats)

    def _step(self) -> Callable[..., Any]:
        return compiled(runge_kutta_step, self.cuda_graphs) if self.compile else runge_kutta_step


class _CountedStep:
    """A step that counts its evaluations, outside of what is compiled."""

    def __init__(self, step: Callable[..., Any], stats: SolveStats) -> None:
        self.step = step
        self.stats = stats
        self.phase: Phase = "forward"

    def __call__(
        self, vector_field: VectorField, t: Tensor, dt: Tensor, y: Any, tableau: Tableau
    ) -> Any:
        self.stats.count_evaluation(self.phase, len(tableau.c))
        return self.step(vector_field, t, dt, y, tableau)


def runge_kutta_step(
    vector_field: VectorField, t: Tensor, dt: Tensor, y: Any, tableau: Tableau
) -> Any:
    """One explicit Runge-Kutta step from ``t`` to ``t + dt``; returns the new state."""
    stages: list[Any] = []
    for c, row in zip(tableau.c, tableau.a, strict=True):
        stages.append(vector_field(t + c * dt, _advance(y, dt, row, stages)))
    return _advance(y, dt, tableau.b, stages)


def integrate(
    vector_field: VectorField,
    y0: Any,
    t_eval: Tensor,
    method: str,
    n_steps: int,
    step: Callable[..., Any] = runge_kutta_step,
) -> Any:
    """Take ``n_steps`` steps in each interval of ``t_eval``; states at ``t_eval``, stacked."""
    tableau = TABLEAUS[method]
    y, ys = y0, [y0]
    for i in range(len(t_eval) - 1):
        t0, dt = t_eval[i], (t_eval[i + 1] - t_eval[i]) / n_steps
        for j in range(n_steps):
            y = step(vector_field, t0 + j * dt, dt, y, tableau)
        ys.append(y)
    if isinstance(y0, tuple):
        return tuple(torch.stack(parts) for parts in zip(*ys, strict=True))
    return torch.stack(ys)


def _advance(y: Any, dt: Tensor, weights: tuple[float, ...], stages: list[Any]) -> Any:
    """``y + dt * sum(weights * stages)``, for a tensor or part by part."""
    if isinstance(y, tuple):
        return tuple(
            _advance(part, dt, weights, [stage[i] for stage in stages]) for i, part in enumerate(y)
        )
    terms = [w * k for w, k in zip(weights, stages, strict=True) if w != 0.0]
    return y + dt * sum(terms[1:], start=terms[0]) if terms else y
