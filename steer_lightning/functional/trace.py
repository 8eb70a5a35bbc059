"""The divergence of a vector field, exactly."""

from collections.abc import Callable

import torch
from torch import Tensor


def exact_divergence(
    vector_field: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Value and divergence of a vector field, by forward mode along each coordinate.

    .. math:: \operatorname{tr} \frac{\partial f}{\partial y}
        = \sum_d \frac{\partial f_d}{\partial y_d}

    Works under ``inference_mode`` and can be trained through. The cost is ``D`` tangents: for
    small ``D``.

    Args:
        vector_field: ``f(t, y)``, which treats the samples of a batch apart.
        t: Time, shape ``()`` or ``(B,)``.
        y: State, shape ``(B, ...)``.

    Returns:
        ``f(t, y)``, shape of ``y``, and its divergence, shape ``(B,)``.

    Example:
        >>> y = torch.randn(3, 2)
        >>> exact_divergence(lambda t, y: 2.0 * y, torch.tensor(0.0), y)[1]
        tensor([4., 4., 4.])
    """
    batch, dim = len(y), y[0].numel()
    basis = torch.eye(dim, dtype=y.dtype, device=y.device).view(dim, 1, *y.shape[1:])

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value: Tensor
        tangent: Tensor
        value, tangent = torch.func.jvp(  # type: ignore[misc]  # a third entry only with has_aux
            lambda x: vector_field(t, x), (y,), (direction.expand_as(y),)
        )
        return value, (tangent * direction).reshape(batch, -1).sum(1)

    values, diagonal = torch.func.vmap(along)(basis)
    return values[0], diagonal.sum(0)
