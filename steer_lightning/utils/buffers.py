"""Put back a model's buffers, such as running statistics."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


def keep_buffers(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """A function that puts back the buffers that modules themselves hold now: tensors and values.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> restore = keep_buffers(norm.modules())
        >>> y = norm(torch.full((3, 2), torch.nan))
        >>> restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]

    @torch.no_grad()
    def restore() -> None:
        for module, name, buffer, before in kept:
            setattr(module, name, buffer)  # another tensor may have taken its place
            if not torch.equal(buffer, before):  # autograd counts what is written
                buffer.copy_(before)

    return restore
