"""One compilation for everything of a structure."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Every batch size, block shape and grad mode of a shared compilation is a graph of its own, and
# all of them count towards one limit.
RECOMPILE_LIMIT = 128


@cache
def compiled(function: Callable[..., Any], cuda_graphs: bool = False) -> Callable[..., Any]:
    """Compile a function of modules and tensors, once in a process.

    A module among the arguments is no constant of the graph: all modules of one structure share
    it, whatever their weights; new values of tensors compile nothing.

    Args:
        function: A plain function; must not branch on values of tensors.
        cuda_graphs: Replay the graph as a CUDA graph on a GPU.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    mode = "reduce-overhead" if cuda_graphs else None
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
