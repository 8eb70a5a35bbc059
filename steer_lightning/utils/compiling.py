"""One compilation for everything of a structure."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.utils.autograd import has_gradient
from steer_lightning.utils.problem import VectorField, parts

# Every block shape and grad mode of a shared compilation is a graph of its own, and all of them
# count towards one limit.
RECOMPILE_LIMIT = 128


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of modules, times, states and constants, once in a process.

    All modules of one structure share a graph, whatever their weights; new values of tensors
    compile nothing, nor does a new batch size, unless the function depends on it, as convolutions
    and the Jacobians of some fields do.
    """
    config: Any = torch._dynamo.config
    graph = torch.compile(function, fullgraph=True)

    def of_any_batch(*args: Any) -> Any:
        for part in (part for arg in args for part in parts(arg)):
            if isinstance(part, Tensor) and part.ndim:
                torch._dynamo.maybe_mark_dynamic(part, 0)
        if config.recompile_limit < RECOMPILE_LIMIT:  # of this thread: autograd has its own
            config.recompile_limit = RECOMPILE_LIMIT
        # No other axis than the marked ones. By hand: `config.patch` takes 45 us a call.
        before, config.automatic_dynamic_shapes = config.automatic_dynamic_shapes, False
        try:
            return graph(*args)
        finally:
            config.automatic_dynamic_shapes = before

    return of_any_batch


def as_trained(vector_field: VectorField, y: Any) -> Any:
    """A state with a gradient, if the field trains: the first one has the graph of later ones.

    Made under ``inference_mode`` it cannot have one; a forward derivative would get lost.
    """
    module = vector_field if isinstance(vector_field, nn.Module) else nn.Module()
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters()):
        return y
    found = tuple(
        part if has_gradient(part) or part.is_inference() else part.detach().requires_grad_()
        for part in parts(y)
    )
    return found if isinstance(y, tuple) else found[0]
