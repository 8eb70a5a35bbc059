"""One compilation shared by every vector field of a shape."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.utils.autograd import transforms_active
from steer_lightning.utils.compiling import as_trained, compiled


class CompiledField(nn.Module):
    """A vector field compiled by :func:`torch.compile`, with the field as an argument.

    All fields of one structure share one compilation; a new end time, ``eval()`` or new weights
    do not compile again. Needs a C++ compiler on the CPU. In a compiled step the field is
    a part of that; under a transform of ``torch.func``, as for the Jacobians of an implicit
    solver, it runs as it is.

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
        self.autonomous = bool(getattr(vector_field, "autonomous", False))
        self.controlled_parts: int | None = getattr(vector_field, "controlled_parts", None)

    @property
    def jacobian(self) -> Any:
        """The field's own, where it has one."""
        return self.vector_field.jacobian

    def forward(self, t: Tensor, y: Any) -> Any:
        # Dynamo refuses to enter a transform; a compiled step has the field in its own graph.
        if torch.compiler.is_compiling() or transforms_active():
            return self.vector_field(t, y)
        return compiled(_call)(self.vector_field, t, as_trained(self.vector_field, y))


def _call(vector_field: nn.Module, t: Tensor, y: Any) -> Any:
    return vector_field(t, y)
