"""One explicit Runge-Kutta step, for every method, fixed grid or adaptive, eager or compiled."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_lightning.solvers.tableaus import Row, Tableau
from steer_lightning.utils.problem import VectorField, parts

# A number where the time is constant: no operation turns it into a tensor, and no GPU is waited
# for. A tensor of shape () where it has a gradient, and in what is compiled.
Time = float | Tensor


def runge_kutta_step(
    vector_field: VectorField,
    start: Time,
    end: Time,
    y: Any,
    first_stage: Any | None,
    tableau: Tableau,
) -> tuple[Any, list[Any]]:
    """State at ``end``, on either side of ``start``, and the stages of the step there.

    ``first_stage`` is ``f(start, y)`` if it is known.
    """
    h = step_length(start, end, y)
    stages = [] if first_stage is None else [first_stage]
    y_stage = y
    for c, row in zip(tableau.c[len(stages) :], tableau.a[len(stages) :], strict=True):
        y_stage = advance(y, h, row, stages)
        stages.append(evaluate(vector_field, end if c == 1.0 else start + c * h, y_stage))
    if not tableau.first_same_as_last:
        y_stage = advance(y, h, tableau.b, stages)
    return y_stage, stages


def evaluate(vector_field: VectorField, t: Time, y: Any) -> Any:
    """The field at ``t``, which it gets in the precision of the state, as it gives its value."""
    slope, several = vector_field(as_time(t, y), y), isinstance(y, tuple)
    slopes, states = tuple(slope) if several else (slope,), parts(y)
    if [k.shape for k in slopes] != [part.shape for part in states]:
        got, expected = ([tuple(part.shape) for part in x] for x in (slopes, states))
        raise ValueError(
            f"Expected the vector field to return the shapes of the state, {expected}, but got "
            f"{got}."
        )
    for k, part in zip(slopes, states, strict=True):
        if k.is_complex() and not part.is_complex():
            raise TypeError(
                f"Expected a complex state for a vector field that gives {k.dtype}, but got "
                f"{part.dtype}, in which its imaginary part would be lost."
            )
    # Autocast lowers what a network gives.
    slopes = tuple(k.to(part.dtype) for k, part in zip(slopes, states, strict=True))
    return slopes if several else slopes[0]


def as_time(t: Time, y: Any) -> Tensor:
    """A time as a field gets it: a tensor in the precision of the state, on its device."""
    like = parts(y)[0]
    dtype = like.real.dtype if like.is_complex() else like.dtype
    if isinstance(t, Tensor):
        return t.to(like.device, dtype)
    return torch.full((), t, dtype=dtype, device=like.device)


def step_length(start: Time, end: Time, y: Any) -> Time:
    """The signed length of a step, in the precision of the state."""
    h = end - start
    return as_time(h, y) if isinstance(h, Tensor) else h


def advance(y: Any, h: Time, weights: Row, stages: Sequence[Any]) -> Any:
    """The state ``y + h sum(weights * stages)``; more weights than stages are zeros."""
    if isinstance(y, tuple):
        columns: Iterator[Any] = zip(*stages, strict=True) if stages else iter([()] * len(y))
        return tuple(advance(p, h, weights, ks) for p, ks in zip(y, columns, strict=True))
    for w, k in zip(weights, stages, strict=False):
        if w != 0.0:
            y = _add(y, k, w, h)
    return y


def error_ratio(
    y: Any,
    y_next: Any,
    stages: Sequence[Any],
    h: Time,
    weights: Row,
    tolerances: tuple[Time, Time],
    controlled: int | None,
) -> Tensor:
    r"""Root mean square of a step's error estimate in units of the tolerance, shape ``()``.

    .. math::
        \mathrm{RMS}\left(\frac{h \sum_i e_i k_i}
        {\mathrm{atol} + \mathrm{rtol} \max(|y|, |y_\mathrm{next}|)}\right)

    with stages :math:`k_i` and weights :math:`e_i`. Of the first ``controlled`` parts of a tuple,
    all if ``None``, the largest one counts.
    """
    rtol, atol = tolerances
    ratios = []
    ks = zip(*map(parts, stages), strict=True)
    for part, part_next, k in list(zip(parts(y), parts(y_next), ks, strict=True))[:controlled]:
        scale = atol + rtol * torch.maximum(part.abs(), part_next.abs())
        ratios.append(rms(combine(k, weights, h) / scale))
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax()


def rms(x: Tensor) -> Tensor:
    """Root mean square, whose gradient at zero is zero."""
    return torch.linalg.vector_norm(x) / math.sqrt(x.numel())


def combine(ks: Sequence[Tensor], weights: Row, h: Time = 1.0) -> Tensor:
    """``h`` times the weighted sum of tensors; zero weights are passed over."""
    (w, k), *rest = [(w, k) for w, k in zip(weights, ks, strict=True) if w != 0.0]
    total = (w * h) * k
    for w, k in rest:
        total = _add(total, k, w, h)
    return total


def _add(y: Tensor, k: Tensor, w: float, h: Time) -> Tensor:
    """``y + w h k``, one operation where ``h`` is a number."""
    return y + (w * h) * k if isinstance(h, Tensor) else torch.add(y, k, alpha=w * h)
