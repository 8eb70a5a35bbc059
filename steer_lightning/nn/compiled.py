"""One compilation shared by every vector field of a shape."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class CompiledField(nn.Module):
    """A vector field compiled by :func:`torch.compile`, with the field as an argument.

    All fields of one structure share one compilation; a new end time, ``eval()`` or new weights
    do not compile again. Needs a C++ compiler on the CPU.

    Args:
        vector_field: ``f(t, y)``; must not branch on values.

    Example:
        >>> from steer_lightning.nn import MLPField
        >>> field = CompiledField(MLPField(2, (8,)))
        >>> len(list(field.parameters()))
        4
    """

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__()
        self.vector_field = vector_field

    @property
    def autonomous(self) -> bool:
        """Whether the field ignores time."""
        return bool(getattr(self.vector_field, "autonomous", False))

    def forward(self, t: Tensor, y: Any) -> Any:
        """Derivative of ``y`` at ``t``."""
        return _compiled_call()(self.vector_field, t, y)


@cache
def _compiled_call() -> Callable[[nn.Module, Tensor, Any], Any]:
    return torch.compile(_call, fullgraph=True, dynamic=False)


def _call(vector_field: nn.Module, t: Tensor, y: Any) -> Any:
    return vector_field(t, y)
