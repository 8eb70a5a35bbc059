"""The state of the autograd engine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Whether a transform of torch.func is being taken.
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active


def saves_through_hooks() -> bool:
    """Whether tensors that are saved for a backward pass go through hooks, as in a checkpoint."""
    engine: Any = torch._C._autograd  # mypy knows no such function
    return engine._top_saved_tensors_default_hooks(True) is not None


def has_gradient(x: Tensor) -> bool:
    """Whether derivatives pass through a tensor, in reverse or in forward mode."""
    dual: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return x.requires_grad or dual(x).tangent is not None


class Node(NamedTuple):
    """A node of the autograd graph.

    Attributes:
        number: Nodes count up in the order they are made.
        name: That of its type.
        own_forward: Whether it is a ``torch.autograd.Function``'s, made before its forward pass
            ran and not after.
    """

    number: int
    name: str
    own_forward: bool


def in_backward() -> bool:
    """Whether this runs inside an autograd engine's backward pass.

    :func:`torch.autograd.grad` called in a forward pass does not count: its caller is outside.
    """
    return backward_pass() != -1


def backward_pass() -> int:
    """Number of the backward pass that this runs inside; -1 in none, and never the same twice."""
    return torch._C._current_graph_task_id()


def next_node() -> int:
    """Number of the autograd node that this thread makes next; they count up."""
    return torch._C._autograd._get_sequence_nr()


def running_node() -> Node | None:
    """The node whose backward runs now; ``None`` outside a backward pass."""
    if torch.compiler.is_compiling() or not in_backward():
        return None
    node: Any = torch._C._current_autograd_node()
    if node is None:
        return None
    own_forward = isinstance(node, torch.autograd.function.BackwardCFunction)
    return Node(node._sequence_nr(), type(node).__name__, own_forward)
