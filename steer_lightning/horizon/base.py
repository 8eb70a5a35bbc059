"""Horizons, which STEER perturbs and resets, and the fields seen through their warp."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.history import DrawHistory
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.problem import VectorField


class WarpedField(nn.Module):
    """A vector field seen in nominal time: ``rate * f(warp(s), y)``.

    ``f`` receives ``t`` of shape ``(B,)`` if the warp has one rate or one start for each sample,
    else ``()``. The warp is fixed for the life of the field: a backward pass sees the end time of
    its forward pass.
    """

    def __init__(self, vector_field: VectorField, warp: TimeWarp) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.warp = warp

    @property
    def controlled_parts(self) -> int | None:
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
        return lambda s, y: self.warp.scale(own(self._actual(s), y))

    def forward(self, s: Tensor, y: Any) -> Any:
        return self.warp.scale(self.vector_field(self._actual(s), y))

    def _actual(self, s: Tensor) -> Tensor:
        """In the precision of ``s``, which is that of the state; ends may be more precise."""
        return self.warp.actual(s).to(s.dtype)

    def trainable_tensors(self) -> list[Tensor]:
        """The learnable end time, which an adjoint must differentiate besides the parameters."""
        return [x for x in self.warp if isinstance(x, Tensor) and x.requires_grad]


class Movable(nn.Module, ABC):
    """An end of integration that a draw can move.

    The draw is plain state: never a buffer, never in ``state_dict``. What a backward pass solves
    again has the draw of its forward pass.

    Attributes:
        drawn: What a draw makes of this horizon, for the log: its end time, or how far it
            stretches; ``None`` until it is known.
        solved: Whether a solve took part in the draw since this was last set to ``False``.
        owner: Who may move this horizon.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history = DrawHistory()
        self.drawn: float | None = None
        self.solved = False
        self.owner: object | None = None

    @property
    def draw(self) -> Draw | None:
        """The draw that was put in force last."""
        return self.history.last()[0]

    def perturb(self, draw: Draw, root: nn.Module | None = None) -> None:
        """Put a draw in force until the next call or :meth:`reset`, after :meth:`check`.

        While ``root`` is in eval mode the nominal end time stays in force.
        """
        self.check(draw)
        self.history.put(draw, root)
        self.drawn = None

    def note(self, drawn: float) -> None:
        """Keep what a draw makes of this horizon; a backward pass repeats an older draw."""
        if not in_backward():
            self.drawn = drawn

    def reset(self) -> None:
        """Go back to the nominal end time."""
        self.history.put(None)
        self.drawn = None

    def current_draw(self) -> Draw | None:
        """The draw of the solve at hand, which is about to begin."""
        draw = self.history.current()
        self.solved = self.solved or draw is not None
        return draw

    def __getstate__(self) -> dict[str, Any]:
        """A copy is nobody's, and stands at the nominal end time."""
        fresh = {"history": DrawHistory(), "drawn": None, "owner": None, "solved": False}
        return {**self.__dict__, **fresh}

    @abstractmethod
    def check(self, draw: Draw) -> None:
        """Raise a ``ValueError`` if a draw could not be put in force."""

    @abstractmethod
    def describe(self) -> str:
        """The interval in words, for a table."""

    def extra_repr(self) -> str:
        return self.describe()

    @abstractmethod
    def in_force(self) -> dict[str, float]:
        """The values in force now, by the names they are logged under."""


class Horizon(Movable):
    """Times of a solve of this library's that a draw can move: a pure transform."""

    @abstractmethod
    def times(self, y0: Any) -> Tensor:
        """The nominal times of a solve that asks for none, shape ``(2,)``."""

    @abstractmethod
    def warp(
        self, vector_field: VectorField, t_eval: Tensor, y0: Any
    ) -> tuple[VectorField | list[WarpedField], Tensor]:
        """The field and the times of the solve in force, both untouched if nothing is.

        A list has fields to be solved one after another, one for each interval of the times.

        Args:
            vector_field: ``f(t, y)``.
            t_eval: Nominal times, shape ``(T,)``.
            y0: State at the first time, for its batch size, dtype and device.
        """


@contextmanager
def moved(horizons: Sequence[Movable], draw: Draw | None) -> Iterator[None]:
    """Put another draw, or none, in force for a while.

    Raises:
        ValueError: If the draw does not fit a horizon; none is moved then.
    """
    if in_backward():
        with ExitStack() as stack:
            for horizon in horizons:
                stack.enter_context(horizon.history.repeated(draw))
            yield
        return
    before = [(horizon.history.last(), horizon.drawn) for horizon in horizons]
    try:
        for horizon in horizons:
            if draw is None:
                horizon.reset()
            else:
                horizon.perturb(draw)
        yield
    finally:
        for horizon, (entry, drawn) in zip(horizons, before, strict=True):
            horizon.history.put(*entry)
            horizon.drawn = drawn
