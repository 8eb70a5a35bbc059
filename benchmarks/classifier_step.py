"""Training step of NODE and ANODE (Table 5, MNIST) against torchdiffeq with a plain field.

Same weights, images and tolerances, dopri5 at 1e-3 on [0, 1]; cross-entropy, forward and backward.
The plain field concatenates time as a channel, as published code does. Losses, and gradients of
the field's weights, are compared with those of torchdiffeq through autograd at 1e-5.

``python -m benchmarks.classifier_step [--eager]``
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint

from benchmarks.timing import (
    Contender,
    best_device,
    convolve_with_time,
    machine,
    measure,
)
from steer_lightning.nn import Augmented, CompiledField, ConvField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver, SolveStats

TOLERANCE = 1e-3
BATCH_SIZE, SIZE = 64, 28


# Filters of the hidden layers, and zero channels appended to one channel of grey.
Architecture = tuple[int, int]
ARCHITECTURES: dict[str, Architecture] = {"NODE-92": (92, 0), "ANODE-64+5": (64, 5)}


class PlainBlock(nn.Module):
    """A :class:`ConvField` as it is commonly written, solved by torchdiffeq called directly."""

    def __init__(self, field: ConvField, tol: float = TOLERANCE) -> None:
        super().__init__()
        self.field = field
        self.tol = tol
        self.stats = SolveStats()

    def derivative(self, t: Tensor, y: Tensor) -> Tensor:
        """The field at ``t``, with time concatenated to every input."""
        self.stats.count("nfe")
        y = F.relu(convolve_with_time(self.field.conv1, t, y))
        y = F.relu(convolve_with_time(self.field.conv2, t, y))
        return convolve_with_time(self.field.conv3, t, y)

    def forward(self, y0: Tensor) -> Tensor:
        """State at the end."""
        t = torch.tensor([0.0, 1.0], device=y0.device)
        return odeint(self.derivative, y0, t, rtol=self.tol, atol=self.tol, method="dopri5")[-1]


def own_block(field: nn.Module) -> ODEBlock:
    """This library's block."""
    return ODEBlock(field, AdaptiveSolver("dopri5", TOLERANCE, TOLERANCE))


def make_contender(
    make_block: Callable[[ConvField], nn.Module], architecture: Architecture, x: Tensor
) -> Contender:
    """A classifier of images ``x``, shape ``(B, 1, H, W)``, with the same weights each time."""
    filters, n_extra = architecture
    torch.manual_seed(0)
    block = make_block(ConvField(1 + n_extra, filters))
    head = nn.Linear((1 + n_extra) * x[0].numel(), 10)
    block = Augmented(block, n_extra) if n_extra else block
    classifier = nn.Sequential(block, nn.Flatten(), head).to(x)
    labels = torch.arange(len(x), device=x.device) % 10
    return Contender(classifier, lambda: F.cross_entropy(classifier(x), labels), block)


def make_images(n: int = BATCH_SIZE, size: int = SIZE) -> Tensor:
    """Images, shape ``(n, 1, size, size)``, in [0, 1]."""
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def compare(name: str, architecture: Architecture, x: Tensor, compiled: bool, repeats: int) -> str:
    """One architecture's Markdown table."""
    blocks: dict[str, Callable[[ConvField], nn.Module]]
    blocks = {"torchdiffeq, autograd": PlainBlock, "`ODEBlock`": own_block}
    if compiled:
        blocks["`ODEBlock(CompiledField)`"] = lambda field: own_block(CompiledField(field))
    contenders = {key: make_contender(make, architecture, x) for key, make in blocks.items()}
    exact = make_contender(lambda field: PlainBlock(field, 1e-5), architecture, x)
    return measure(f"{name}, batch {len(x)}, {x.device.type}", contenders, exact, repeats)


def run(compiled: bool = True, repeats: int = 5) -> str:
    """Measure, and tell as Markdown tables."""
    x = make_images().to(best_device())
    return "\n\n".join(
        compare(name, architecture, x, compiled, repeats)
        for name, architecture in ARCHITECTURES.items()
    )


if __name__ == "__main__":
    print(f"{machine()}\n\n{run(compiled='--eager' not in sys.argv)}")
