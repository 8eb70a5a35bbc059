"""The Jacobian of a vector field, for each sample."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer_lightning.solvers.runge_kutta import Time, as_time, evaluate
from steer_lightning.utils.autograd import saves_through_hooks
from steer_lightning.utils.problem import VectorField, parts

_Rows = Callable[[Tensor, Tensor], Tensor]
_func: Any = torch.func  # whose types leave open how many values come back


class Layout:
    """How a state lies in the rows of a matrix, one row a sample.

    Args:
        y: State, a tensor or a tuple of tensors, batch along axis 0.
    """

    def __init__(self, y: Any) -> None:
        self.like = y
        self.n_samples = len(first) if (first := parts(y)[0]).ndim else 1
        self.widths = [math.prod(part.shape[1:]) for part in parts(y)]
        self.dimension = sum(self.widths)  # of one sample

    def pack(self, y: Any) -> Tensor:
        """The state as ``(B, D)``."""
        rows = [part.reshape(self.n_samples, -1) for part in parts(y)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unpack(self, flat: Tensor) -> Any:
        """The state again."""
        if not isinstance(self.like, tuple):
            return flat.reshape(self.like.shape)
        pieces = torch.split(flat, self.widths, dim=1)
        return tuple(
            piece.reshape(part.shape).to(part.dtype)
            for piece, part in zip(pieces, parts(self.like), strict=True)
        )


class Linearization(NamedTuple):
    """A vector field near one time and state, in rows.

    Args:
        slope: Its value, shape ``(B, D)``.
        jacobian: Derivatives of ``[b, i]`` in ``[b, j]``, shape ``(B, D, D)``.
        drift: Derivative in time, shape ``(B, D)``; ``None`` if the field ignores time.
    """

    slope: Tensor
    jacobian: Tensor
    drift: Tensor | None


def linearize(vector_field: VectorField, t: Time, y: Any) -> Linearization:
    r"""Value, Jacobian and derivative in time of a field, samples apart, by one call of it.

    Reverse mode along all coordinates at once; forward mode where tensors are saved through hooks,
    as in a checkpoint. A field that has a method ``jacobian(t, y)`` is asked for
    :math:`\partial f_i / \partial y_j`, shape ``(B, D, D)``; one that says ``autonomous = True``
    for nothing in time.

    Raises:
        ValueError: If the field's own Jacobian has another shape.
    """
    autonomous = bool(getattr(vector_field, "autonomous", False))
    own = getattr(vector_field, "jacobian", None)
    layout = Layout(y)
    time, flat = as_time(t, y), layout.pack(y)

    def f(time: Tensor, flat: Tensor) -> Tensor:
        return layout.pack(evaluate(vector_field, time, layout.unpack(flat)))

    if own is not None:
        jacobian = own(time, y)
        expected = (layout.n_samples, layout.dimension, layout.dimension)
        if tuple(jacobian.shape) != expected:
            raise ValueError(
                f"Expected the field's `jacobian` to have shape {expected}, derivatives of the "
                f"second axis in the third, but got {tuple(jacobian.shape)}."
            )
        jacobian = jacobian.to(flat.dtype)
        if autonomous:
            return Linearization(f(time, flat), jacobian, None)
        slope, drift = _func.jvp(lambda time: f(time, flat), (time,), (torch.ones_like(time),))
        return Linearization(slope, jacobian, drift)

    # Reverse mode is the faster one, but does not run under hooks. What is compiled is under none.
    compiling = torch.compiler.is_compiling()
    by_mode = _reverse if compiling or not saves_through_hooks() else _forward
    return by_mode(f, time, flat, autonomous)


def _reverse(f: _Rows, time: Tensor, flat: Tensor, autonomous: bool) -> Linearization:
    """Along all rows of the result at once."""
    n_samples, dim = flat.shape
    slope, pull = _func.vjp(f, time, flat)
    if dim == 1:
        rows = pull(torch.ones_like(slope))[1][None]
    else:
        unit = torch.eye(dim, dtype=slope.dtype, device=slope.device)
        cotangents = unit[:, None].expand(dim, n_samples, dim)
        rows = torch.func.vmap(lambda cotangent: pull(cotangent)[1])(cotangents)
    jacobian = rows.transpose(0, 1)
    if autonomous:
        return Linearization(slope, jacobian, None)
    # What a cotangent gives in time, for all samples together, is linear in it: its derivative is
    # that of each.
    _, pull_time = _func.vjp(lambda v: pull(v)[0], torch.zeros_like(slope))
    (drift,) = pull_time(torch.ones_like(time))
    return Linearization(slope, jacobian, drift)


def _forward(f: _Rows, time: Tensor, flat: Tensor, autonomous: bool) -> Linearization:
    """Along all coordinates, and time, at once."""
    dim = flat.shape[1]
    clocks = torch.zeros(dim + 1, dtype=time.dtype, device=time.device)
    clocks[-1] = 1.0
    unit = torch.eye(dim, dtype=flat.dtype, device=flat.device)
    directions = torch.cat([unit, unit.new_zeros(1, dim)])

    def along(clock: Tensor, direction: Tensor) -> Any:
        return _func.jvp(f, (time, flat), (clock, direction.expand_as(flat)))

    slopes, columns = torch.func.vmap(along)(clocks, directions)
    drift = None if autonomous else columns[-1]
    return Linearization(slopes[0], columns[:-1].permute(1, 2, 0), drift)
