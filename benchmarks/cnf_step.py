"""Training step of the 10-block MNIST flow against torchdiffeq's adjoint with double backward.

Same weights, images and noise; rk4 (3/8 rule) in four steps; bits per dimension, kinetic energy
and Jacobian norm. The plain code takes the norm of J^T e, as the published code does, this
library's that of J e: of equal expectation, but other numbers. So loss and gradient are compared
twice: without that term, and as a whole with J e in the plain code too.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_adjoint

from benchmarks.timing import (
    best_device,
    convolve_with_time,
    flat_gradient,
    kept_gigabytes,
    machine,
    relative_difference,
    side_by_side,
    table,
)
from steer_lightning.nn import CNF, ConvFlowField, MultiScaleCNF
from steer_lightning.nn.flows.transforms import squeeze
from steer_lightning.nn.likelihood import bits_per_dim, dequantize, standard_normal_log_prob
from steer_lightning.nn.trace import trace_noise
from steer_lightning.solvers import FixedGridSolver
from steer_lightning.utils.seeding import stream

SIZE, HIDDEN = 28, (64, 64, 64)


class Loss(NamedTuple):
    """The three terms of RNODE's loss, means over the batch."""

    bits: Tensor
    kinetic: Tensor
    jacobian: Tensor

    def total(self, jacobian_weight: float = 0.01) -> Tensor:
        """The weighted sum."""
        return self.bits + 0.01 * self.kinetic + jacobian_weight * self.jacobian


def make_flow(
    size: int = SIZE,
    hidden: tuple[int, ...] = HIDDEN,
    compile_field: bool = False,
    **solver: Any,
) -> MultiScaleCNF:
    """The flow with the same weights each time, away from the zero initialisation."""
    torch.manual_seed(0)
    flow = MultiScaleCNF(
        (1, size, size),
        partial(ConvFlowField, hidden=hidden),
        solver=FixedGridSolver("rk4", 4, **solver),
        compile=compile_field,
    )
    for block in flow.blocks:
        nn.init.normal_(block.vector_field.layers[-1].weight, std=0.01)
    return flow


def make_batch(n: int, size: int = SIZE) -> Tensor:
    """Dequantised images, shape ``(n, 1, size, size)``."""
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(256, (n, 1, size, size), generator=generator).float()
    return dequantize(grey, torch.rand(grey.shape, generator=generator))


def own_loss(flow: MultiScaleCNF, x: Tensor) -> Loss:
    """This library's loss."""
    carried = flow.transport(x, generator=stream(x.device, "benchmark"), regularize=True)
    assert carried.kinetic is not None
    assert carried.jacobian is not None
    bits = bits_per_dim(carried.log_p, x[0].numel())
    return Loss(bits.mean(), carried.kinetic.mean(), carried.jacobian.mean())


class PlainField(nn.Module):
    """One block as it is commonly written: time concatenated, derivatives by double backward.

    ``forward_mode`` takes J e by forward mode in place of J^T e, ``probe`` being e.
    """

    def __init__(self, field: ConvFlowField, probe: Tensor, forward_mode: bool) -> None:
        super().__init__()
        self.field = field
        self.probe = probe
        self.forward_mode = forward_mode

    def network(self, t: Tensor, y: Tensor) -> Tensor:
        """The network, with time as a channel."""
        *hidden, last = self.field.layers
        for layer in hidden:
            y = F.softplus(convolve_with_time(layer, t, y))
        return convolve_with_time(last, t, y)

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Derivatives of state, log-density and regularisers."""
        y, e = state[0], self.probe
        if self.forward_mode:
            dy, product = torch.func.jvp(lambda y: self.network(t, y), (y,), (e,))
        else:
            with torch.enable_grad():
                y = y.requires_grad_(True)
                dy = self.network(t, y)
                (product,) = torch.autograd.grad(dy, y, e, create_graph=True)
        return (
            dy,
            (product * e).flatten(1).sum(1),
            0.5 * dy.square().flatten(1).mean(1),
            product.square().flatten(1).mean(1),
        )


def plain_loss(flow: MultiScaleCNF, x: Tensor, forward_mode: bool = False) -> Loss:
    """The same loss without this library's solver, fields or traces."""
    generator = stream(x.device, "benchmark")
    integrate = odeint if forward_mode else odeint_adjoint
    assert flow.logit is not None
    y, delta = flow.logit(x)
    zero = torch.zeros_like(delta)
    totals = [delta, zero, zero]

    def through(blocks: Iterable[CNF], y: Tensor) -> Tensor:
        for block in blocks:
            noise = trace_noise(y, "gaussian", generator)
            states = integrate(
                PlainField(block.vector_field, noise, forward_mode), (y, zero, zero, zero),
                torch.tensor([0.0, 1.0], device=y.device),
                method="rk4", options={"step_size": 0.25},
            )  # fmt: skip
            y, *integrals = (state[-1] for state in states)
            totals[:] = [a + b for a, b in zip(totals, integrals, strict=True)]
        return y

    latents = []
    *scales, last = flow.scales
    for scale in scales:
        y, latent = through(scale.after, squeeze(through(scale.before, y))).chunk(2, dim=1)
        latents.append(latent)
    y = through(last.before, y)
    delta, kinetic, jacobian = totals
    z = torch.cat([latent.flatten(1) for latent in (*latents, y)], dim=1)
    bits = bits_per_dim(standard_normal_log_prob(z) + delta, x[0].numel())
    return Loss(bits.mean(), kinetic.mean(), jacobian.mean())


def make_loss(
    settings: Mapping[str, Any] | None, x: Tensor, autocast: bool = False
) -> Callable[[], Tensor]:
    """The loss of this library's code with settings, or of the plain code."""
    flow = make_flow(**(settings or {})).to(x.device)
    terms = plain_loss if settings is None else own_loss

    def loss() -> Tensor:
        flow.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            return terms(flow, x).total()

    return loss


def step(loss: Callable[[], Tensor]) -> None:
    """A forward and backward pass."""
    total = loss()
    total.backward()
    if total.device.type == "cuda":
        torch.cuda.synchronize()


def compare(flow: MultiScaleCNF, x: Tensor) -> dict[str, tuple[float, float]]:
    """Relative differences of loss and gradient from the plain code's, by what is compared."""

    def difference(peer: Callable[[], Loss], weight: float) -> tuple[float, float]:
        losses, gradients = [], []
        for loss in (partial(own_loss, flow, x), peer):
            flow.zero_grad()
            losses.append(loss().total(weight))
            losses[-1].backward()
            gradients.append(flat_gradient(flow))
        return relative_difference(*losses), relative_difference(*gradients)

    return {
        "without the Jacobian term, adjoint": difference(partial(plain_loss, flow, x), 0.0),
        "all terms with J e, autograd": difference(partial(plain_loss, flow, x, True), 0.01),
    }


def cases(device: torch.device, compiled: bool) -> dict[str, Mapping[str, Any]]:
    """Settings of :func:`make_flow` by name."""
    found: dict[str, Mapping[str, Any]] = {
        "stacked pass, autograd": {},
        "stacked pass, checkpointed steps": {"checkpoint": True},
    }
    if compiled:
        found["compiled field"] = {"compile_field": True}
        found["compiled step"] = {"compile": True}
        if device.type == "cuda":
            found["compiled step, CUDA graphs"] = {"compile": True, "cuda_graphs": True}
    return found


def run(compiled: bool = True) -> str:
    """Measure, and tell as Markdown tables."""
    device = best_device()
    batch_size = 200 if device.type == "cuda" else 16
    x = make_batch(batch_size).to(device)
    settings: dict[str, tuple[Mapping[str, Any] | None, bool]]
    settings = {"torchdiffeq adjoint, double backward": (None, False)}
    for name, own in cases(device, compiled).items():
        settings[name] = (own, False)
        if device.type == "cuda":
            settings[f"{name}, bf16"] = (own, True)
    losses = {name: make_loss(own, x, autocast) for name, (own, autocast) in settings.items()}
    steps = {name: partial(step, loss) for name, loss in losses.items()}
    seconds = side_by_side(steps, repeats=5, warmup=2)
    slowest = next(iter(seconds.values()))
    rows = [
        [
            name,
            f"{seconds[name]:.2f}",
            f"{slowest / seconds[name]:.2f}",
            "" if name.startswith("compiled") else f"{kept_gigabytes(loss):.2f}",
        ]
        for name, loss in losses.items()
    ]
    header = [f"batch {batch_size}, 10 blocks, {device.type}", "s a step", "speed-up", "GB kept"]
    differences = [
        [name, f"{loss:.1e}", f"{gradient:.1e}"]
        for name, (loss, gradient) in compare(make_flow().to(device), x).items()
    ]
    return "\n\n".join([
        table(header, rows),
        table(["relative difference from the plain code", "of loss", "of gradient"], differences),
    ])  # fmt: skip


if __name__ == "__main__":
    print(f"{machine()}\n\n{run(compiled='--eager' not in sys.argv)}")
