"""The state of the autograd engine."""

import torch


def in_backward() -> bool:
    """Whether this runs inside an autograd engine's backward pass.

    :func:`torch.autograd.grad` called in a forward pass does not count: its caller is outside.
    """
    return backward_pass() != -1


def backward_pass() -> int:
    """Number of the backward pass that this runs inside; -1 in none, and never the same twice."""
    return torch._C._current_graph_task_id()
