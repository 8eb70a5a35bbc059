"""Objects shown as the call that makes them."""

import inspect
from typing import Any


class Shown:
    """Base of what shows its settings, which are attributes named as its arguments.

    An argument that is left at ``None``, or of which no attribute is kept, is left out.

    Example:
        >>> class Widths(Shown):
        ...     def __init__(self, first, last=None, seed=0):
        ...         self.first, self.last, self.seed = first, last, seed
        >>> Widths(8)
        Widths(first=8, seed=0)
    """

    def __repr__(self) -> str:
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value: Any = getattr(self, name, None)
            if parameter.kind is parameter.VAR_POSITIONAL:
                shown += [repr(item) for item in value or ()]
            elif value is not None or (hasattr(self, name) and parameter.default is not None):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"
