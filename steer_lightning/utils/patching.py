"""Methods of a module, wrapped on the instance for a while."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn


class WrappedMethods:
    """Wraps methods of one module, and puts its own back.

    Args:
        module: The module; its class is left alone.

    Example:
        >>> module = nn.ReLU()
        >>> wrapped = WrappedMethods(module)
        >>> wrapped.wrap("extra_repr", lambda own: f"{own()}wrapped")
        >>> module
        ReLU(wrapped)
        >>> wrapped.release()
        >>> module
        ReLU()
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own: dict[str, Any] = {}  # what stood on the instance before

    def wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        """Call ``wrapper(method, *args, **kwargs)`` in place of a method."""
        original = getattr(self._module, name)
        self._own[name] = vars(self._module).get(name)

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        # Lightning reads the signature, and looks behind one wrapper.
        wrapped.__wrapped__ = getattr(original, "__wrapped__", original)
        vars(self._module)[name] = wrapped

    def release(self) -> None:
        """Put the module's own methods back; again, nothing happens."""
        for name, own in self._own.items():
            del vars(self._module)[name]
            if own is not None:
                vars(self._module)[name] = own
        self._own = {}
