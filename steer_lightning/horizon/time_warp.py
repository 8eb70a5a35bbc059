r"""STEER as a warp of time: the solver integrates nominal time, the field lives in actual time."""

from typing import Any, NamedTuple

from torch import Tensor


class TimeWarp(NamedTuple):
    r"""An affine map from nominal time :math:`s` to actual time.

    .. math:: \tau(s) = t_\mathrm{start} + \rho\,(s - s_0), \qquad
        \frac{dy}{ds} = \rho\, f(\tau(s), y)

    It extends past both ends, as adaptive solvers overshoot and interpolate.

    Args:
        anchor: Nominal time :math:`s_0` that maps to ``start``, a number or of shape ``()``.
        start: Actual time at the anchor, a number or a tensor of shape ``()`` or ``(B,)``.
        rate: :math:`\rho`, a number or a tensor of shape ``()`` or ``(B,)``.

    Example:
        >>> import torch
        >>> warp = TimeWarp(anchor=0.0, start=0.0, rate=torch.tensor(1.5))
        >>> warp.actual(torch.tensor(1.0))
        tensor(1.5000)
    """

    anchor: float | Tensor
    start: float | Tensor
    rate: float | Tensor

    def actual(self, s: Tensor) -> Tensor:
        """Actual time at nominal time ``s``; shape ``()`` or ``(B,)``."""
        return self.start + self.rate * (s - self.anchor)

    def scale(self, dy: Any) -> Any:
        """Turn the field's derivative in actual time into one in nominal time."""
        if not isinstance(self.rate, Tensor) and self.rate == 1.0:
            return dy
        if isinstance(dy, tuple | list):
            scaled = map(self.scale, dy)
            return dy._make(scaled) if hasattr(dy, "_make") else type(dy)(scaled)
        if isinstance(self.rate, Tensor) and self.rate.ndim:  # along axis 0
            return self.rate.view(-1, *(1,) * (dy.ndim - 1)) * dy
        return self.rate * dy
