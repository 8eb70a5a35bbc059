"""Find vector fields that are random: their value changes while their arguments stay."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.solvers.runge_kutta import evaluate
from steer_lightning.utils.autograd import saves_through_hooks
from steer_lightning.utils.buffers import keep_buffers
from steer_lightning.utils.problem import VectorField, first_part, parts
from steer_lightning.utils.watching import unseen


def randomness(vector_field: VectorField, t: Tensor, y: Any) -> str | None:
    """Why a vector field is not deterministic, in words; ``None`` if it is.

    The field is evaluated twice at time ``t`` and state ``y``. Random streams (torch's, and
    generators that its modules hold), buffers, and what hooks count and keep stay as before.

    Example:
        >>> randomness(lambda t, y: -y + torch.rand(2), torch.zeros(()), torch.ones(2))
        'two evaluations at one point differ'
    """
    modules = list(vector_field.modules()) if isinstance(vector_field, nn.Module) else []
    with _undisturbed(modules, y), unseen(vector_field), _kept_out_of_checkpoints():
        first = _copies(evaluate(vector_field, t, y))
        between = [b.clone() for m in modules for b in m.buffers(recurse=False)]
        second = _copies(evaluate(vector_field, t, y))
        after = [b for m in modules for b in m.buffers(recurse=False)]
        if any(map(_differ, first, second)):
            return "two evaluations at one point differ"
        if any(map(_differ, between, after)):
            return "every evaluation changes its buffers"
    return None


def suspects(vector_field: VectorField) -> list[nn.Module]:
    """Layers of a field, as it is now, that are known for such values."""
    if not isinstance(vector_field, nn.Module):
        return []
    found = []
    for module in (m for m in vector_field.modules() if m.training):
        # Dropout's layers have a rate `p`; recurrent layers and attention one named `dropout`.
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        rate = module.p if dropout else getattr(module, "dropout", None)
        random = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU)
        if random or (isinstance(rate, float) and rate > 0):
            found.append(module)
    return found


def _kept_out_of_checkpoints() -> AbstractContextManager[Any]:
    """Let what is saved here be no part of a checkpoint, which would miss it when it repeats."""
    if not saves_through_hooks():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


@contextmanager
def _undisturbed(modules: list[nn.Module], y: Any) -> Iterator[None]:
    """Put back what an evaluation in training changes besides its value."""
    device = first_part(y).device
    restore = keep_buffers(modules)
    generators = [
        (g, g.get_state()) for m in modules for g in vars(m).values()
        if isinstance(g, torch.Generator)
    ]  # fmt: skip
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            restore()
            for generator, state in generators:
                generator.set_state(state)


def _copies(dy: Any) -> list[Tensor]:
    return [part.detach().clone() for part in parts(dy)]


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two values differ by more than the order of a sum may change them."""
    if not a.is_floating_point():
        return not torch.equal(a, b)
    error = (a - b)[a.isfinite() & b.isfinite()].abs()
    if error.numel() == 0:
        return False
    scale = a[a.isfinite()].abs().max()
    return bool(error.max() > max(1e-5, 8.0 * torch.finfo(a.dtype).eps) * scale)
