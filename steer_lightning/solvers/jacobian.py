"""The Jacobian of a vector field, for each sample."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer_lightning.solvers.runge_kutta import Time, as_time, evaluate
from steer_lightning.utils.problem import VectorField, parts


class Layout:
    """How a state lies in the rows of a matrix, one row a sample.

    Args:
        y: State, a tensor or a tuple of tensors, batch along axis 0.

    Example:
        >>> layout = Layout((torch.zeros(3, 2, 2), torch.ones(3)))
        >>> layout.pack((torch.zeros(3, 2, 2), torch.ones(3))).shape
        torch.Size([3, 5])
    """

    def __init__(self, y: Any) -> None:
        self.like = y
        self.n_samples = len(first) if (first := parts(y)[0]).ndim else 1
        self.widths = [part.numel() // self.n_samples for part in parts(y)]

    @property
    def dimension(self) -> int:
        """Numbers in the state of one sample."""
        return sum(self.widths)

    def pack(self, y: Any) -> Tensor:
        """The state as ``(B, D)``."""
        rows = [part.reshape(self.n_samples, -1) for part in parts(y)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unpack(self, flat: Tensor) -> Any:
        """The state again."""
        pieces = torch.split(flat, self.widths, dim=1)
        found = tuple(
            piece.reshape(part.shape).to(part.dtype)
            for piece, part in zip(pieces, parts(self.like), strict=True)
        )
        return found if isinstance(self.like, tuple) else found[0]


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


def linearize(vector_field: VectorField, t: Time, y: Any, layout: Layout) -> Linearization:
    r"""Value, Jacobian and derivative in time of a field, by one call of it.

    Forward mode along all coordinates and time at once, of which the value and the derivative in
    time are a part. A field that has a method ``jacobian(t, y)`` is asked for
    :math:`\partial f_i / \partial y_j`, shape ``(B, D, D)``; one that says ``autonomous = True``
    for nothing in time.

    Args:
        vector_field: ``f(t, y)``, which treats the samples of a batch apart.
        t: Time.
        y: State.
        layout: Of ``y``.

    Raises:
        ValueError: If the field's own Jacobian has another shape.

    Example:
        >>> y = torch.ones(3, 2)
        >>> found = linearize(lambda t, y: t * y, 2.0, y, Layout(y))
        >>> found.jacobian[0], found.drift[0]
        (tensor([[2., 0.],
                [0., 2.]]), tensor([1., 1.]))
    """
    autonomous = bool(getattr(vector_field, "autonomous", False))
    own = getattr(vector_field, "jacobian", None)
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
        slope, drift = _jvp(lambda time: f(time, flat), (time,), (torch.ones_like(time),))
        return Linearization(slope, jacobian, drift)

    dim = layout.dimension
    along_state = torch.eye(dim, dtype=flat.dtype, device=flat.device)
    if autonomous:

        def in_state(direction: Tensor) -> tuple[Tensor, Tensor]:
            return _jvp(lambda flat: f(time, flat), (flat,), (direction.expand_as(flat),))

        slopes, columns = torch.func.vmap(in_state)(along_state)
        return Linearization(slopes[0], columns.permute(1, 2, 0), None)

    def along(clock: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        return _jvp(f, (time, flat), (clock, direction.expand_as(flat)))

    clocks = torch.zeros(dim + 1, dtype=time.dtype, device=time.device)
    clocks[-1] = 1.0
    directions = torch.cat([along_state, along_state.new_zeros(1, dim)])
    slopes, columns = torch.func.vmap(along)(clocks, directions)
    return Linearization(slopes[0], columns[:-1].permute(1, 2, 0), columns[-1])


def _jvp(
    f: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    value: Tensor
    tangent: Tensor
    value, tangent = torch.func.jvp(f, primals, tangents)  # type: ignore[misc]  # without has_aux
    return value, tangent


def kept_bytes(layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of the matrices and their factors that one step keeps for its gradient."""
    return 2 * layout.n_samples * layout.dimension**2 * math.ceil(torch.finfo(dtype).bits / 8)
