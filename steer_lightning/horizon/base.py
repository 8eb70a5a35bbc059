"""Horizons, which STEER perturbs and resets, and the fields seen through their warp."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.problem import VectorField


class WarpedField(nn.Module):
    """A vector field seen in nominal time: ``rate * f(warp(s), y)``.

    Args:
        vector_field: ``f(t, y)``; receives ``t`` of shape ``(B,)`` if the warp has one rate or
            one start for each sample, else ``()``.
        warp: The map from nominal to actual time, fixed for the life of this field: a backward
            pass sees the end time of its forward pass.
    """

    def __init__(self, vector_field: VectorField, warp: TimeWarp) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.warp = warp

    @property
    def controlled_parts(self) -> int | None:
        """How many parts of the state set the step size; ``None`` for all."""
        return getattr(self.vector_field, "controlled_parts", None)

    @property
    def autonomous(self) -> bool:
        """Whether the field ignores time."""
        return bool(getattr(self.vector_field, "autonomous", False))

    @property
    def jacobian(self) -> Callable[[Tensor, Any], Tensor] | None:
        """The field's own Jacobian in nominal time, ``(B, D, D)``; ``None`` if it has none."""
        own = getattr(self.vector_field, "jacobian", None)
        if own is None:
            return None
        return lambda s, y: self.warp.scale(own(self.warp.actual(s), y))

    def forward(self, s: Tensor, y: Any) -> Any:
        """Derivative of ``y`` in nominal time."""
        return self.warp.scale(self.vector_field(self.warp.actual(s), y))

    def trainable_tensors(self) -> list[Tensor]:
        """The learnable end time, which an adjoint must differentiate besides the parameters."""
        return [x for x in self.warp if isinstance(x, Tensor) and x.requires_grad]


class PiecewiseField(NamedTuple):
    """Fields to be solved one after another, each from one time to the next.

    Args:
        fields: A field for each interval between neighbouring times.
    """

    fields: list[WarpedField]


class Horizon(nn.Module):
    """Times of a solve that a draw can move.

    The draw is plain state: never a buffer, never in ``state_dict``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._draw: Draw | None = None
        self.solved = False
        self.owner: object | None = None

    @property
    def draw(self) -> Draw | None:
        """The draw in force."""
        return self._draw

    def perturb(self, draw: Draw) -> None:
        """Put a draw in force until the next call or :meth:`reset`.

        Raises:
            ValueError: If the draw does not fit the horizon.
        """
        self.check(draw)
        self._draw = draw

    def reset(self) -> None:
        """Go back to the nominal end time."""
        self.__dict__.update(self._nominal())

    def __getstate__(self) -> dict[str, Any]:
        """A copy is nobody's, and stands at the nominal end time."""
        return {**self.__dict__, **self._nominal(), "owner": None, "solved": False}

    def _nominal(self) -> dict[str, Any]:
        """The attributes that a draw changes, as they are without one."""
        return {"_draw": None}

    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if a draw could not be put in force."""
        raise NotImplementedError

    def describe(self) -> str:
        """The interval in words, for a table."""
        raise NotImplementedError

    def in_force(self) -> dict[str, float]:
        """The values in force now, by the names they are logged under."""
        raise NotImplementedError

    def times(self, y0: Any) -> Tensor:
        """The nominal times of a solve that asks for none, shape ``(2,)``."""
        raise NotImplementedError

    def warp(
        self, vector_field: VectorField, t_eval: Tensor, y0: Any
    ) -> tuple[VectorField | PiecewiseField, Tensor]:
        """The field and the times of the solve that is in force, for those of the nominal one.

        Args:
            vector_field: ``f(t, y)``.
            t_eval: Nominal times, shape ``(T,)``.
            y0: State at the first time, for its batch size, dtype and device.

        Returns:
            What to solve, at times of shape ``(T,)``; both untouched if nothing is in force.
        """
        raise NotImplementedError
