"""An initial-value problem: its field, its state and the parts of it, its times."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from steer_lightning.utils.autograd import in_backward

P = ParamSpec("P")
T = TypeVar("T")
VectorField = Callable[[Tensor, Any], Any]
Held = list[tuple[nn.Module, str, Any]]
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# What may be a condition; a field may also count its evaluations in an integer.
_HOLDABLE = (Tensor, nn.Module, tuple, list, dict, float, int, str, type(None))
_ABSENT = object()


def parts(y: Any) -> tuple[Tensor, ...]:
    """The parts of a state that is a tuple; a tensor is one part."""
    return y if isinstance(y, tuple) else (y,)


def last_of(ys: Any) -> Any:
    """The last of stacked states, part by part."""
    return tuple(part[-1] for part in ys) if isinstance(ys, tuple) else ys[-1]


def stack(states: Sequence[Any]) -> Any:
    """States along a new first axis, part by part."""
    if isinstance(states[0], tuple):
        return tuple(torch.stack(column) for column in zip(*states, strict=True))
    return torch.stack(list(states))


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


def exact(t: Tensor) -> Tensor:
    """Times in float64, on a device that has it."""
    return t.double() if has_float64(t.device) else t


def default_times(y0: Any, *times: float) -> Tensor:
    """Times for a solve of ``y0``, in float64; on its device, or the CPU if that has none."""
    device, t = first_part(y0).device, torch.tensor(times, dtype=torch.float64)
    return t.to(device) if has_float64(device) else t


def trainable_tensors(vector_field: VectorField) -> tuple[Tensor, ...]:
    """Every tensor that a field's output depends on and that wants a gradient.

    The parameters of an ``nn.Module``, and what its submodules list in a method
    ``trainable_tensors`` (a warp with a learnable end time, say). A field, or one that it wraps,
    that is no module raises a ``TypeError``.
    """
    module = _as_module(vector_field)
    found = [p for p in module.parameters() if p.requires_grad]
    for part in module.modules():
        if hasattr(part, "vector_field"):  # a wrapper, of what may be a closure
            _as_module(part.vector_field)
        extra = getattr(part, "trainable_tensors", None)
        found.extend(extra() if callable(extra) else ())
    known = {id(x) for x in found}
    for part in module.modules():
        # Made from parameters in each call: by weight_norm, spectral_norm, pruning.
        hooks = part._forward_pre_hooks.values()
        made = {getattr(h, "name", getattr(h, "_tensor_name", None)) for h in hooks}
        for name, value in {**vars(part), **part._buffers}.items():
            own = name in _OF_EVERY_MODULE or name in made
            outside = () if own else _tensors_in(value, set())
            if any(x.requires_grad and id(x) not in known for x in outside):
                raise ValueError(
                    f"Expected no tensor with a gradient but parameters in a vector field "
                    f"for gradient='adjoint', which would drop it, but got one in `{name}` of "
                    f"{type(part).__name__}. Make it a part of the state, whose derivative is "
                    f"zero, or a parameter, or register the module that has it; or use "
                    f"gradient='autograd'."
                )
    return tuple(found)


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors in containers, in modules that are no parts, and in what functions hold."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Iterable[Any] = ()
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        inside = (*value.parameters(), *value.buffers())
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, tuple | list | set):
        inside = value
    elif isinstance(value, MethodType):
        inside = (value.__self__,)
    elif isinstance(value, FunctionType):  # a cell may be empty as yet
        inside = (cell.cell_contents for cell in value.__closure__ or () if cell != CellType())
    for x in inside:
        yield from _tensors_in(x, seen)


def as_held(held: Held, function: Callable[P, T]) -> Callable[P, T]:
    """A function of a field to which, in backward passes, the field holds what it held before.

    Another condition may be in force by then, of another solve of the same field.
    """

    def call(*args, **kwargs):  # type: ignore[no-untyped-def] # torch.compile guards annotations
        if not in_backward():
            return function(*args, **kwargs)
        with holding(held):
            return function(*args, **kwargs)

    return call


@contextmanager
def holding(held: Held) -> Iterator[None]:
    """Let a field's modules hold what they held when :func:`held_by` was asked."""
    places: list[tuple[dict[str, Any], str]] = [
        (next((own for own in (p._buffers, p._modules) if name in own), vars(p)), name)
        for p, name, _ in held
    ]
    before = [place.get(name, _ABSENT) for place, name in places]
    try:
        for (place, name), (_, _, value) in zip(places, held, strict=True):
            place[name] = value
        yield
    finally:
        for (place, name), (_, _, inside), value in zip(places, held, before, strict=True):
            now = place.get(name)
            if value is _ABSENT:
                place.pop(name, None)
            elif {type(value), type(now), type(inside)} == {int}:
                place[name] = value + now - inside  # what was counted meanwhile
            else:
                place[name] = value


def held_by(vector_field: VectorField) -> Held:
    """What a field may be conditioned on, in the parts of its module.

    That is plain attributes, buffers and modules.
    """
    return [
        (part, name, value)
        for part in (vector_field.modules() if isinstance(vector_field, nn.Module) else ())
        for name, value in (*vars(part).items(), *part._buffers.items(), *part._modules.items())
        if name not in _OF_EVERY_MODULE and isinstance(value, _HOLDABLE)
    ]


def _as_module(vector_field: Any) -> nn.Module:
    if not isinstance(vector_field, nn.Module):
        raise TypeError(
            f"Expected the vector field to be an nn.Module for gradient='adjoint', which must "
            f"find its parameters, but got {type(vector_field).__name__}. Wrap it in an "
            f"nn.Module, or use gradient='autograd'."
        )
    return vector_field
