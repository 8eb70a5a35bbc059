"""Solves that somebody else's code asks another library for: their times, and their failures."""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq._impl.solvers import (
    AdaptiveStepsizeEventODESolver,
    AdaptiveStepsizeODESolver,
    FixedGridODESolver,
)

from steer_lightning.solvers.errors import ForeignSolverError, SolverError

_LIBRARIES = ("torchdiffeq", "torchdyn", "torchode", "zuko")


@dataclass(eq=False)
class ForeignSolve:
    """A solve in progress.

    Attributes:
        times: What its caller asked for, shape ``(T,)``; ``None`` where it ends at an event.
        func: What its caller gave for a vector field.
    """

    times: Tensor | None
    func: Any

    def is_of(self, field: nn.Module) -> bool:
        """Whether it is a module's, by its caller or by a block of this library around it."""
        func = self.func
        while isinstance(func, partial):
            func = func.func
        if str(getattr(func, "__module__", "")).startswith("steer_lightning."):
            return True
        return _plain(getattr(func, "__self__", func)) is _plain(field)


def _plain(module: Any) -> Any:
    """A module without the wrapper of ``torch.compile``."""
    return getattr(module, "_orig_mod", module)


_THREAD = threading.local()


def solve_in_progress() -> ForeignSolve | None:
    """The innermost of torchdiffeq's solves that this runs in, once they are watched."""
    return getattr(_THREAD, "solve", None)


@cache
def watch_solves() -> None:
    """Watch torchdiffeq's loops from now on, whoever calls them, by whatever name.

    Nothing public of torchdiffeq tells; no other place touches what it keeps to itself. What a
    solve computes stays as it is.
    """
    for solver in (AdaptiveStepsizeODESolver, AdaptiveStepsizeEventODESolver, FixedGridODESolver):
        for name in ("integrate", "integrate_until_event"):
            if name in vars(solver):
                setattr(solver, name, _watched(vars(solver)[name], name == "integrate"))


def _watched(loop: Callable[..., Any], has_end: bool) -> Callable[..., Any]:
    @wraps(loop)
    def run(solver: Any, t: Tensor, *args: Any) -> Any:
        outer = solve_in_progress()
        _THREAD.solve = ForeignSolve(*_as_asked(solver.func, t if has_end else None))
        try:
            return loop(solver, t, *args)
        finally:
            _THREAD.solve = outer

    return run


def _as_asked(func: Any, t: Tensor | None) -> tuple[Tensor | None, Any]:
    """Times and field of the caller: torchdiffeq runs backward solves forwards in ``-t``."""
    while type(func).__module__.startswith("torchdiffeq.") and hasattr(func, "base_func"):
        if type(func).__name__ == "_ReverseFunc" and t is not None:
            t = -t
        func = func.base_func
    return t, func


def as_solver_error(error: Exception, phase: str) -> SolverError | None:
    """An exception as the failure of a solve, if one of these libraries raised it itself.

    They say that a solve failed by ``AssertionError``, ``RuntimeError`` or ``ValueError``. An
    error of another kind gives ``None``.

    Example:
        >>> from torchdiffeq import odeint
        >>> import torch
        >>> try:
        ...     odeint(lambda t, y: y / 0.0, torch.ones(1), torch.tensor([0.0, 1.0]))
        ... except AssertionError as error:
        ...     print(type(as_solver_error(error, "forward")).__name__)
        ForeignSolverError
    """
    if isinstance(error, SolverError):
        return error
    frames = list(traceback.walk_tb(error.__traceback__))
    library = str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0]
    kinds = AssertionError | RuntimeError | ValueError
    is_failure = isinstance(error, kinds) and not isinstance(error, torch.OutOfMemoryError)
    if library not in _LIBRARIES or not is_failure:
        return None
    found = ForeignSolverError(library, str(error) or type(error).__name__, phase)
    found.__cause__ = error
    return found
