"""Timing of alternatives side by side."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional as F


def machine() -> str:
    """The hardware and versions that numbers depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchdiffeq "
        f"{torchdiffeq.__version__}, {torch.get_num_threads()} CPU threads, {device}"
    )


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Norm of the difference in units of the norm of ``b``, in the precision of ``b``."""
    return float((a - b).norm() / b.norm())


def flat_gradient(module: nn.Module) -> Tensor:
    """The gradient that the last backward pass left."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def kept_gigabytes(loss: Callable[[], Tensor]) -> float:
    """Gigabytes that a forward pass keeps for the backward pass, parameters included."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    value.backward()
    return sum(sizes.values()) / 1e9


def reserved_gigabytes(step: Callable[[], object]) -> float:
    """Gigabytes of a GPU that three steps took."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        step()
    return (torch.cuda.memory_reserved() - before) / 1e9


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def convolve_with_time(layer: nn.Conv2d, t: Tensor, y: Tensor) -> Tensor:
    """A convolution with time concatenated as a channel, as published code has it."""
    time = t.to(y).expand(len(y), 1, *y.shape[2:])
    return F.conv2d(torch.cat([time, y], dim=1), layer.weight, layer.bias, padding=layer.padding)


def side_by_side(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each case, taken in turns so that a slow moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(warmup + repeats):
        for name, case in cases.items():
            start = clock()
            case()
            if i >= warmup:
                seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


class Contender(NamedTuple):
    """A model, whose blocks count their evaluations in ``stats``, and what gives its loss.

    Gradients are compared of ``part``, or of the whole model: a head hides what a solver does.
    """

    module: nn.Module
    loss: Callable[[], Tensor]
    part: nn.Module | None = None

    def step(self) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Loss, gradient, and evaluations forward and backward, of one training step."""
        owners = (part for part in self.module.modules() if hasattr(part, "stats"))
        stats = {id(owner.stats): owner.stats for owner in owners}.values()
        for counts in stats:
            counts.reset()
        self.module.zero_grad()
        loss = self.loss()
        loss.backward()
        if loss.is_cuda:
            torch.cuda.synchronize()
        nfe = sum(s.nfe_forward for s in stats), sum(s.nfe_backward for s in stats)
        return loss.detach(), flat_gradient(self.part or self.module), nfe


def measure(
    title: str,
    contenders: Mapping[str, Contender],
    exact: Contender | None = None,
    repeats: int = 5,
    warmup: int = 1,
) -> str:
    """Markdown table of training steps: time, evaluations, memory, and errors.

    Evaluations are means over the steps; loss and gradient of the last one are compared, relative,
    with those of ``exact``, or of the first contender. Memory is what a forward pass keeps; on a
    GPU it is what a contender's steps take of it, all in all.
    """
    device = next(next(iter(contenders.values())).module.parameters()).device
    on_gpu = device.type == "cuda"
    clock, unit = (time.perf_counter, "ms") if on_gpu else (time.process_time, "CPU ms")
    memory = {}
    if on_gpu:  # which warms up, too
        memory = {name: reserved_gigabytes(c.step) for name, c in contenders.items()}
        warmup = 0
    taken: dict[str, list[Any]] = {name: [] for name in contenders}
    steps = {
        name: lambda name=name, step=contender.step: taken[name].append(step())
        for name, contender in contenders.items()
    }
    seconds = side_by_side(steps, repeats, warmup, clock)
    first = next(iter(contenders))
    loss, gradient, _ = taken[first][-1] if exact is None else exact.step()
    memory = memory or {name: kept_gigabytes(c.loss) for name, c in contenders.items()}
    rows = []
    for name in contenders:
        own_loss, own_gradient, _ = taken[name][-1]
        counts = zip(*(nfe for _, _, nfe in taken[name][warmup:]), strict=True)
        rows.append(
            [name, f"{1e3 * seconds[name]:.1f}", f"{seconds[first] / seconds[name]:.2f}",
             *(f"{mean(count):.4g}" for count in counts),
             f"{memory[name]:.2g}",
             f"{relative_difference(own_loss, loss):.1e}",
             f"{relative_difference(own_gradient, gradient):.1e}"]
        )  # fmt: skip
    header = [title, f"{unit} a step", "speed-up", "NFE forward", "backward",
              "GB" if on_gpu else "GB kept", "error of loss", "of gradient"]  # fmt: skip
    return table(header, rows)
