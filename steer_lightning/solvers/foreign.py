"""The solves that somebody else's code asks torchdiffeq for, as they happen."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from torch import Tensor, nn
from torchdiffeq._impl.solvers import (
    AdaptiveStepsizeEventODESolver,
    AdaptiveStepsizeODESolver,
    FixedGridODESolver,
)


@dataclass(eq=False)
class ForeignSolve:
    """A solve in progress.

    Attributes:
        times: What its caller asked for, shape ``(T,)``; ``None`` where it ends at an event.
    """

    times: Tensor | None


class _Stack(threading.local):
    def __init__(self) -> None:
        self.solves: list[ForeignSolve] = []


_STACK = _Stack()


def solve_in_progress() -> ForeignSolve | None:
    """The innermost of torchdiffeq's solves that this runs in, once they are watched."""
    return _STACK.solves[-1] if _STACK.solves else None


@cache
def watch_solves() -> None:
    """Watch torchdiffeq's loops from now on, whoever calls them, by whatever name.

    Nothing public of torchdiffeq tells; no other place touches what it keeps to itself. What a
    solve computes stays as it is.
    """
    adaptive = AdaptiveStepsizeODESolver, AdaptiveStepsizeEventODESolver, FixedGridODESolver
    for solver in adaptive:
        for name in ("integrate", "integrate_until_event"):
            if name in vars(solver):
                setattr(solver, name, _watched(vars(solver)[name], name == "integrate"))


def _watched(loop: Callable[..., Any], has_end: bool) -> Callable[..., Any]:
    @wraps(loop)
    def run(solver: Any, t: Tensor, *args: Any) -> Any:
        _STACK.solves.append(ForeignSolve(_as_asked(solver.func, t) if has_end else None))
        try:
            return loop(solver, t, *args)
        finally:
            _STACK.solves.pop()

    return run


def _as_asked(func: nn.Module, t: Tensor) -> Tensor:
    """The times of the caller: torchdiffeq runs backward solves forwards in ``-t``."""
    while (inner := getattr(func, "base_func", None)) is not None:
        if type(func).__name__ == "_ReverseFunc":
            return -t
        func = inner
    return t
