"""Forward hooks that watch a vector field, and evaluations that are not for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Watching:
    """Base of hooks that count or keep evaluations of a field, but those in :func:`unseen`.

    An object, so that a model with hooks can be pickled.
    """

    watching = True


@contextmanager
def unseen(vector_field: Callable[..., Any]) -> Iterator[None]:
    """Evaluations inside are not counted or kept, as those of a penalty or of a first look."""
    modules = vector_field.modules() if isinstance(vector_field, nn.Module) else ()
    found = (hook for module in modules for hook in module._forward_hooks.values())
    hooks: list[Any] = [hook for hook in found if isinstance(hook, Watching)]
    before = [hook.watching for hook in hooks]
    for hook in hooks:
        hook.watching = False
    try:
        yield
    finally:
        for hook, was in zip(hooks, before, strict=True):
            hook.watching = was
