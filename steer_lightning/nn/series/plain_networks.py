"""Modules that compute no more than what their class says, read as weights."""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from steer_lightning.nn.fields import MLPField
from steer_lightning.nn.series.network_gradient import Network


def are_plain(modules: Collection[nn.Module], known: Collection[type], like: Tensor) -> bool:
    """Whether formulas over their weights give all that modules would do with a tensor.

    Not so with autocast, hooks, subclasses, parametrised weights or a ``forward`` of one's own.

    Args:
        modules: To look at, with all their children.
        known: Classes whose formulas are known, beside linear layers with tanh between them.
        like: The tensor.
    """
    known = {*known, nn.Sequential, nn.Linear, nn.Tanh}
    parts = [part for module in modules for part in module.modules()]
    dtypes = {p.dtype for module in modules for p in module.parameters()}
    return (
        all(type(part) in known and not _is_changed(part) for part in parts)
        and dtypes == {like.dtype}
        and not torch.is_autocast_enabled(like.device.type)
    )


def _is_changed(module: nn.Module) -> bool:
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def field_network(field: MLPField, t: Tensor) -> tuple[Network, Tensor]:
    """The state's share in a tanh field, and what times, shape ``(A,)``, and bias add to it."""
    first, *later = cast(list[nn.Linear], list(field.network)[::2])
    network = tuple(part for layer in later for part in (layer.weight, layer.bias))
    if field.autonomous:
        return (first.weight, *network), first.bias.expand(len(t), -1)
    offset = torch.addcmul(first.bias, t[:, None].to(first.weight), first.weight[:, 0])
    return (first.weight[:, 1:], *network), offset
