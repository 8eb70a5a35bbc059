"""Which draw a solve belongs to, in a training forward pass and in the backward pass after it."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import ReferenceType, ref

from torch import nn

from steer_lightning.horizon.end_time import Draw
from steer_lightning.utils.autograd import next_node, running_node

_REMEMBERED = 1000  # changes: a draw and the way back, at least, in each step


@dataclass
class _Change:
    node: int  # the first autograd node that comes after it
    seen: int  # the first one after the last solve under it
    draw: Draw | None
    root: ReferenceType[nn.Module] | None
    active: Draw | None  # the draw, if the root was in training mode


class DrawHistory:
    """The draws of one horizon, each with the autograd nodes that were made under it.

    A backward pass may solve or evaluate again, in an adjoint or a checkpoint, when another draw
    or none is in force. What it repeats has the draw of its forward pass: autograd numbers its
    nodes in the order they are made, and the number of the node that runs tells which that was.
    A change of mode is known at the next solve; an adjoint's node was made just before that.
    """

    def __init__(self) -> None:
        self._changes: deque[_Change] = deque(maxlen=_REMEMBERED)
        self._repeated: list[Draw | None] = []
        self.put(None)

    def put(self, draw: Draw | None, root: nn.Module | None = None) -> None:
        """Put a draw in force, or none; with ``root``, only while that is in training mode."""
        known = None if root is None else ref(root)
        node = next_node()
        self._changes.append(_Change(node, node, draw, known, _active(draw, root)))

    def current(self) -> Draw | None:
        """The draw of the solve at hand.

        Raises:
            RuntimeError: In a backward pass whose forward pass is too long ago.
        """
        node = running_node()
        if node is None:
            draw, root = self.last()
            if _active(draw, root) is not self._changes[-1].active:  # train() or eval() since
                self.put(draw, root)
            self._changes[-1].seen = next_node()
            return self._changes[-1].active
        if self._repeated:
            return self._repeated[-1]
        later = None
        for change in reversed(self._changes):
            if change.node <= node.number:
                break
            later = change
        else:
            raise RuntimeError(
                "A backward pass solves again what its forward pass solved before the last "
                f"{_REMEMBERED} changes of the end time, two or more a step, or before the span "
                "was set: the end time is no longer known. Call backward earlier, and put all "
                "that is evaluated at nominal times in a step into one `with nominal(...)`."
            )
        # An adjoint's node is made just before the solve that first hears of train() or eval().
        just_before = node.own_forward and change.seen <= node.number
        if later is not None and later.draw is change.draw and just_before:
            return later.active
        return change.active

    @contextmanager
    def repeated(self, draw: Draw | None) -> Iterator[None]:
        """Keep a draw in force, or none, where a checkpoint repeats a context going backward."""
        self._repeated.append(draw)
        try:
            yield
        finally:
            self._repeated.pop()

    def last(self) -> tuple[Draw | None, nn.Module | None]:
        """What was put in force last."""
        change = self._changes[-1]
        return change.draw, None if change.root is None else change.root()


def _active(draw: Draw | None, root: nn.Module | None) -> Draw | None:
    return draw if root is None or root.training else None
