"""A CPU that plays a device without float64, such as Apple's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DOUBLE = (torch.float64, torch.complex128)


class NoFloat64Error(Exception):
    pass


class Device:
    """Knows which tensors live on it, by their memory, and lets none of them be float64.

    The tensors it is given live there, and what is computed from them; so does what is made with
    an argument ``device`` or moved beside one of them, and ``.cpu()`` leaves. Tensors made from
    nothing (end times drawn on the CPU, say) stay outside and may be float64 until they meet.

    It proves that no operation of the code run, backward passes too, makes a float64 tensor
    there or mixes one in. It does not prove that the device has a kernel for each operation, nor
    that no other tensor on the CPU meets one on the device.
    """

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}  # kept alive, so that no address is used again

    def put(self, *values: Any) -> None:
        for tensor in _tensors(values):
            if tensor.dtype in DOUBLE:
                raise NoFloat64Error(
                    f"The device has no {tensor.dtype}: shape {tuple(tensor.shape)}"
                )
            storage = tensor.untyped_storage()
            self._memory[storage._cdata] = storage

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._memory

    def copy_out(self, tensor: Tensor) -> Tensor:
        """What ``.cpu()`` gives: other memory."""
        with torch.utils._python_dispatch._disable_current_modes():
            return tensor.detach().clone()

    @contextmanager
    def watch(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_Operations(self))
            stack.enter_context(_Moves(self))
            yield


class _Operations(TorchDispatchMode):
    """Everything that is computed, forward and backward."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = _tensors((args, kwargs))
        on_device = any(self.device.holds(x) for x in inputs)
        if on_device:
            # A number in a tensor on the CPU is welcome; torch takes it for a number.
            strangers = [x for x in inputs if x.dtype in DOUBLE and x.ndim > 0]
            if strangers:
                raise NoFloat64Error(f"The device has no float64, but {func} mixes one in")
        out = func(*args, **(kwargs or {}))
        if on_device:
            self.device.put(out)
        return out


class _Moves(TorchFunctionMode):
    """What is made on the device, moved there, and moved away."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.cpu:
            return self.device.copy_out(args[0])
        out = func(*args, **kwargs)
        moved = func is Tensor.to and (
            any(isinstance(x, torch.device) for x in args)
            or any(self.device.holds(x) for x in _tensors(args[1:]))
        )
        if moved or kwargs.get("device") is not None:
            self.device.put(out)
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def forbid_float64(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device, and a library that takes the CPU for it."""
    for module in (
        "utils.problem",
        "solvers.steps",
        "solvers.torchdiffeq",
        "horizon.grid",
    ):
        monkeypatch.setattr(f"steer_lightning.{module}.has_float64", lambda device: False)
    return Device()
