"""Training step of NODE and ANODE (Table 5, MNIST) against torchdiffeq with a plain field.

Same weights, images and tolerances, dopri5 at 1e-3 on [0, 1]; cross-entropy, forward and backward.
The plain field concatenates time as a channel, as published code does. Losses and gradients are
compared with those of torchdiffeq through autograd at 1e-5.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint

from benchmarks.timing import (
    best_device,
    convolve_with_time,
    count_evaluation,
    flat_gradient,
    kept_gigabytes,
    machine,
    relative_difference,
    side_by_side,
    table,
)
from steer_lightning.nn import Augmented, CompiledField, ConvField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver, SolveStats

TOLERANCES = {"rtol": 1e-3, "atol": 1e-3}
BATCH_SIZE, SIZE = 64, 28


class Architecture(NamedTuple):
    """Filters of the hidden layers, and zero channels appended to one channel of grey."""

    filters: int
    n_extra: int = 0


ARCHITECTURES = {"NODE-92": Architecture(92), "ANODE-64+5": Architecture(64, 5)}


class PlainField(nn.Module):
    """A :class:`ConvField` as it is commonly written: time concatenated to every input."""

    def __init__(self, field: ConvField, stats: SolveStats) -> None:
        super().__init__()
        self.field = field
        self.stats = stats

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative at ``t``."""
        count_evaluation(self.stats)
        y = F.relu(convolve_with_time(self.field.conv1, t, y))
        y = F.relu(convolve_with_time(self.field.conv2, t, y))
        return convolve_with_time(self.field.conv3, t, y)


class PlainBlock(nn.Module):
    """torchdiffeq called directly, to a tolerance."""

    def __init__(self, field: ConvField, tol: float) -> None:
        super().__init__()
        self.stats = SolveStats()
        self.field = PlainField(field, self.stats)
        self.tol = tol

    def forward(self, y0: Tensor) -> Tensor:
        """State at the end."""
        t = torch.tensor([0.0, 1.0], device=y0.device)
        return odeint(self.field, y0, t, rtol=self.tol, atol=self.tol, method="dopri5")[-1]


class Step:
    """A forward and backward pass of a classifier of images ``x``, shape ``(B, 1, H, W)``."""

    def __init__(
        self, block: Any, field: ConvField, architecture: Architecture, x: Tensor
    ) -> None:
        n_extra = architecture.n_extra
        torch.manual_seed(1)
        self.head = nn.Linear((1 + n_extra) * x[0].numel(), 10).to(x)
        self.block = Augmented(block, n_extra) if n_extra else block
        self.stats: SolveStats = block.stats
        self.field = field
        self.x = x
        self.labels = torch.arange(len(x), device=x.device) % 10

    def loss(self) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.head(self.block(self.x).flatten(1)), self.labels)

    def __call__(self) -> None:
        self.stats.reset()
        self.field.zero_grad()
        self.loss().backward()
        if self.x.device.type == "cuda":
            torch.cuda.synchronize()

    def result(self) -> tuple[Tensor, Tensor]:
        """Loss, and the gradient in the field's parameters."""
        self()
        with torch.no_grad():
            return self.loss(), flat_gradient(self.field)


def make_field(architecture: Architecture) -> ConvField:
    """The field with the same weights each time."""
    torch.manual_seed(0)
    return ConvField(1 + architecture.n_extra, architecture.filters)


def make_images(n: int = BATCH_SIZE, size: int = SIZE) -> Tensor:
    """Images, shape ``(n, 1, size, size)``, in [0, 1]."""
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def plain_step(architecture: Architecture, x: Tensor, tol: float = TOLERANCES["rtol"]) -> Step:
    """The step by torchdiffeq called directly."""
    field = make_field(architecture).to(x)
    return Step(PlainBlock(field, tol), field, architecture, x)


def make_steps(
    architecture: Architecture, x: Tensor, compiled: bool = False
) -> Mapping[str, Step]:
    """The step in every way, the plain one first."""

    def own(compile: bool = False) -> Step:
        field = make_field(architecture).to(x)
        block = ODEBlock(
            CompiledField(field) if compile else field, AdaptiveSolver("dopri5", **TOLERANCES)
        )
        return Step(block, field, architecture, x)

    steps = {"torchdiffeq, autograd": plain_step(architecture, x), "`ODEBlock`": own()}
    if compiled:
        steps["`ODEBlock(CompiledField)`"] = own(compile=True)
    return steps


def differences(steps: Mapping[str, Step], reference: Step) -> dict[str, tuple[float, float]]:
    """Relative differences of loss and gradient from a reference's."""
    exact = reference.result()
    found = {}
    for name, step in steps.items():
        loss, gradient = map(relative_difference, step.result(), exact)
        found[name] = loss, gradient
    return found


def measure(name: str, compiled: bool, repeats: int) -> str:
    """One architecture's Markdown table."""
    device = best_device()
    x = make_images().to(device)
    steps = make_steps(ARCHITECTURES[name], x, compiled)
    apart = differences(steps, plain_step(ARCHITECTURES[name], x, tol=1e-5))
    seconds = side_by_side(steps, repeats=repeats, warmup=1)
    rows = [
        [
            case,
            f"{seconds[case]:.2f}",
            f"{seconds['torchdiffeq, autograd'] / seconds[case]:.2f}",
            f"{step.stats.nfe_forward}",
            f"{step.stats.nfe_backward}",
            f"{kept_gigabytes(step.loss):.2f}",
            f"{apart[case][0]:.1e}",
            f"{apart[case][1]:.1e}",
        ]
        for case, step in steps.items()
    ]
    header = [
        f"{name}, batch {len(x)}, {device.type}", "s a step", "speed-up", "NFE forward",
        "backward", "GB kept", "difference of loss", "of gradient",
    ]  # fmt: skip
    return table(header, rows)


def run(compiled: bool = True, repeats: int = 5) -> str:
    """Measure, and tell as Markdown tables."""
    return "\n\n".join(measure(name, compiled, repeats) for name in ARCHITECTURES)


if __name__ == "__main__":
    print(f"{machine()}\n\n{run(compiled='--eager' not in sys.argv)}")
