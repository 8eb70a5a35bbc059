"""Checks of what users give; each error says what must hold, what was got and what to do."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_lightning.utils.problem import first_part


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ``ValueError`` that lists near names unless a name is one of those known."""
    known = list(choices)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"Expected `{what}` to be one of {known}, but got {value!r}.{hint}")


def check_state(y0: Any) -> None:
    """Raise unless a state is float32, float64 or complex, and its batch not empty."""
    for part in y0 if isinstance(y0, tuple) else (first_part(y0),):
        if part.dtype in (torch.float16, torch.bfloat16) or not (
            part.is_floating_point() or part.is_complex()
        ):
            raise TypeError(
                f"Expected a state of float32 or float64, but got {part.dtype}: solvers add small "
                f"steps to large states, which half precision loses. Call .float() on what you "
                f"give the block, and let autocast lower the precision of its field alone."
            )
        if part.numel() == 0:
            raise ValueError(
                f"Expected a batch of at least one sample, but got a state of shape "
                f"{tuple(part.shape)}."
            )


def check_problem(y0: Any, t_eval: Tensor) -> None:
    """Check initial state and times before anything is evaluated; see :meth:`Solver.solve`."""
    check_state(y0)
    if t_eval.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Expected `t_eval` to be float32 or float64, but got {t_eval.dtype}.")
    if t_eval.ndim != 1 or len(t_eval) < 2:
        raise ValueError(
            f"Expected `t_eval` of shape (T,) with T >= 2, but got shape {tuple(t_eval.shape)}."
        )
    if torch.compiler.is_exporting():  # a graph has no values to look at
        return
    gaps = t_eval.detach().diff()
    if not bool(gaps.isfinite().all() & ((gaps > 0).all() | (gaps < 0).all())):
        raise ValueError(
            f"Expected `t_eval` to be finite and strictly increasing or strictly decreasing, "
            f"but got {t_eval.tolist()}. Sort the times and drop repeated ones."
        )


def refuse_export(solver: object) -> None:
    """Raise a ``ValueError`` in an export, whose graph would hold the steps of one example."""
    if torch.compiler.is_exporting():
        raise ValueError(
            f"Expected a FixedGridSolver in a model that is exported, whose steps are the same "
            f"for every state, but got {solver}. Give its blocks one, `block.eval_solver = "
            f"FixedGridSolver('rk4', n_steps=8)`, and export in eval mode."
        )


def check_tolerances(rtol: float, atol: float, max_nfe: int | None) -> None:
    """Raise a ``ValueError`` unless tolerances and the budget are positive."""
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ValueError(f"Expected `{name}` to be finite and > 0, but got {tolerance}.")
    if max_nfe is not None and max_nfe < 1:
        raise ValueError(f"Expected `max_nfe` to be None or >= 1, but got {max_nfe}.")


def check_resolution(atol: float, dtype: torch.dtype) -> None:
    """Raise a ``ValueError`` if rounding in a state of zero, in units of ``atol``, overflows."""
    limits = torch.finfo(dtype)
    smallest = limits.eps * math.sqrt(limits.tiny)
    if atol < smallest:
        raise ValueError(
            f"Expected `atol` of at least {smallest:.1g} for a state of {dtype}, which cannot "
            f"resolve less, but got {atol:g}. Raise atol, or use float64."
        )


def check_widths(dim: int, hidden: Sequence[int]) -> None:
    """Raise a ``ValueError`` unless all layer widths are positive."""
    if dim < 1 or any(width < 1 for width in hidden):
        raise ValueError(f"Expected positive layer widths, but got {dim} and {tuple(hidden)}.")


def check_span(t_span: Sequence[float]) -> None:
    """Raise a ``ValueError`` unless a span is a pair."""
    if len(t_span) != 2:
        raise ValueError(f"Expected `t_span` = (t0, t1), but got {tuple(t_span)}.")
