"""An initial-value problem: what its field, state and times must be."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

VectorField = Callable[[Tensor, Any], Any]


def first_part(y: Any) -> Tensor:
    """The state, or the first part of a state that is a tuple."""
    part = y[0] if isinstance(y, tuple) else y
    if not isinstance(part, Tensor):
        raise TypeError(
            f"Expected the state to be a tensor or a tuple of tensors, but got "
            f"{type(part).__name__}."
        )
    return part


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; some accelerators have float32 only."""
    return device.type not in {"mps"}


def default_times(y0: Any, *times: float) -> Tensor:
    """Times for a solve of ``y0``, in float64; on its device, or the CPU if that has none."""
    device, exact = first_part(y0).device, torch.tensor(times, dtype=torch.float64)
    return exact.to(device) if has_float64(device) else exact


def check_state(y0: Any) -> None:
    """Raise unless a state is float32, float64 or complex, and its batch not empty."""
    for part in y0 if isinstance(y0, tuple) else (first_part(y0),):
        if part.dtype in (torch.float16, torch.bfloat16) or not (
            part.is_floating_point() or part.is_complex()
        ):
            raise TypeError(
                f"Expected a state of float32 or float64, but got {part.dtype}: solvers add small "
                f"steps to large states, which half precision loses. Keep the state in float32 "
                f"and let autocast lower the precision of the network alone."
            )
        if part.numel() == 0:
            raise ValueError(
                f"Expected a batch of at least one sample, but got a state of shape "
                f"{tuple(part.shape)}."
            )


def check_problem(y0: Any, t_eval: Tensor) -> None:
    """Check initial state and times before anything is evaluated; see :meth:`Solver.solve`."""
    check_state(y0)
    if t_eval.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Expected `t_eval` to be float32 or float64, but got {t_eval.dtype}.")
    if t_eval.ndim != 1 or len(t_eval) < 2:
        raise ValueError(
            f"Expected `t_eval` of shape (T,) with T >= 2, but got shape {tuple(t_eval.shape)}."
        )
    gaps = t_eval.detach().diff()
    if not bool((gaps > 0).all() | (gaps < 0).all()):
        raise ValueError(
            f"Expected `t_eval` to be strictly increasing or strictly decreasing, but got "
            f"{t_eval.tolist()}. Sort the times and drop repeated ones."
        )


def check_is_module(vector_field: VectorField) -> nn.Module:
    """The field, if it is an ``nn.Module``.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(vector_field, nn.Module):
        raise TypeError(
            f"Expected the vector field to be an nn.Module for gradient='adjoint', which must "
            f"find its parameters, but got {type(vector_field).__name__}. Wrap it in an "
            f"nn.Module, or use gradient='autograd'."
        )
    return vector_field


def trainable_tensors(vector_field: VectorField) -> tuple[Tensor, ...]:
    """Every tensor that a field's output depends on and that wants a gradient.

    These are the parameters of an ``nn.Module`` and what its submodules list in a method
    ``trainable_tensors`` (a warp with a learnable end time, say).

    Raises:
        TypeError: If the field is not an ``nn.Module``, as its parameters cannot be found.
    """
    module = check_is_module(vector_field)
    found = [p for p in module.parameters() if p.requires_grad]
    for part in module.modules():
        if hasattr(part, "vector_field"):  # a wrapper, of what may be a closure
            check_is_module(cast(VectorField, part.vector_field))
        extra = getattr(part, "trainable_tensors", None)
        found.extend(extra() if callable(extra) else ())
    return tuple(found)
