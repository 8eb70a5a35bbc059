"""Wrap methods of one object for a while."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any


class WrappedMethods:
    """Wraps methods of one object, not of its class, until :meth:`release`.

    Copies of the object (``copy.deepcopy``, ``pickle``, ``torch.save``) are not wrapped. Several
    may wrap one method, and release it in any order.

    Example:
        >>> from torch import nn
        >>> module = nn.ReLU()
        >>> methods = WrappedMethods(module)
        >>> methods.wrap("extra_repr", lambda own: f"{own()}wrapped")
        >>> module
        ReLU(wrapped)
        >>> methods.release()
        >>> module
        ReLU()
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._wrapped: list[_Wrapped] = []

    def wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        """Call ``wrapper(method, *args, **kwargs)`` in place of a method."""
        wrapped = _Wrapped(self._owner, name, wrapper)
        vars(self._owner)[name] = wrapped
        self._wrapped.append(wrapped)

    def release(self) -> None:
        """Put the object's own methods back; again, nothing happens."""
        attributes = vars(self._owner)
        for wrapped in self._wrapped:
            wrapped.wrapper = None  # one that lies on top of it calls it still
            name = wrapped.name
            while isinstance(top := attributes.get(name), _Wrapped) and top.wrapper is None:
                del attributes[name]
                if top.before is not None:
                    attributes[name] = top.before
        self._wrapped = []


class _Wrapped:
    """A wrapped method. Its copy is the unwrapped method of the copied object."""

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.wrapper: Callable[..., Any] | None = wrapper
        self.before = vars(owner).get(name)  # what the object itself has, not its class
        self.method = getattr(owner, name)
        update_wrapper(self, self.method, updated=())
        # Lightning reads the signature, and looks behind one wrapper.
        self.__wrapped__ = getattr(self.method, "__wrapped__", self.method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.wrapper is None:
            return self.method(*args, **kwargs)
        return self.wrapper(self.method, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.before is not None:
            return _unchanged, (self.before,)
        # The copied owner has no attributes yet at this point: its class's method is found.
        return getattr, (self.owner, self.name)


def _unchanged(method: Any) -> Any:
    return method
