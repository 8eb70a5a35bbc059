"""Training step of the 10-block MNIST flow against torchdiffeq's adjoint with double backward.

Same weights, images and noise; rk4 (3/8 rule) in four steps; bits per dimension, kinetic energy
and Jacobian norm. The plain code takes the norm of J^T e, as the published code does, this
library's that of J e: of equal expectation, but other numbers. So loss and gradient are compared
with those of the plain code with J e, through autograd. On a GPU convolutions round to TF32, as
torch has it by default, but for those compared with; ``--eager`` compiles nothing.

``python -m benchmarks.cnf_step [--eager]``
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_adjoint

from benchmarks.timing import (
    Contender,
    best_device,
    convolve_with_time,
    machine,
    measure,
)
from steer_lightning.nn import CNF, ConvFlowField, MultiScaleCNF
from steer_lightning.nn.likelihood import bits_per_dim, standard_normal_log_prob
from steer_lightning.nn.trace import trace_noise
from steer_lightning.solvers import FixedGridSolver, SolveStats
from steer_lightning.utils.seeding import stream

SIZE, HIDDEN = 28, (64, 64, 64)


def make_flow(
    size: int = SIZE,
    hidden: tuple[int, ...] = HIDDEN,
    std: float = 0.01,
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
        nn.init.normal_(block.vector_field.layers[-1].weight, std=std)
    return flow


def make_batch(n: int, size: int = SIZE) -> Tensor:
    """Dequantised images, shape ``(n, 1, size, size)``."""
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(256, (n, 1, size, size), generator=generator).float()
    return (grey + torch.rand(grey.shape, generator=generator)) / 256.0


def weighted(bits: Tensor, kinetic: Tensor, jacobian: Tensor) -> Tensor:
    """RNODE's loss."""
    return (bits + 0.01 * kinetic + 0.01 * jacobian).mean()


def own_loss(flow: MultiScaleCNF, x: Tensor) -> Tensor:
    """This library's loss."""
    carried = flow.transport(x, generator=stream(x.device, "benchmark"), regularize=True)
    assert carried.kinetic is not None
    assert carried.jacobian is not None
    return weighted(bits_per_dim(carried.log_p, x[0].numel()), carried.kinetic, carried.jacobian)


class PlainField(nn.Module):
    """One block as it is commonly written: time concatenated, derivatives by double backward.

    ``forward_mode`` takes J e by forward mode in place of J^T e, ``probe`` being e.
    """

    def __init__(
        self, field: ConvFlowField, probe: Tensor, forward_mode: bool, stats: SolveStats
    ) -> None:
        super().__init__()
        self.field = field
        self.probe = probe
        self.forward_mode = forward_mode
        self.stats = stats

    def network(self, t: Tensor, y: Tensor) -> Tensor:
        """The network, with time as a channel."""
        *hidden, last = self.field.layers
        for layer in hidden:
            y = F.softplus(convolve_with_time(layer, t, y))
        return convolve_with_time(last, t, y)

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Derivatives of state, log-density and regularisers."""
        self.stats.count("nfe")
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


def plain_loss(flow: MultiScaleCNF, x: Tensor, forward_mode: bool = False) -> Tensor:
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
                PlainField(block.vector_field, noise, forward_mode, block.stats),
                (y, zero, zero, zero),
                torch.tensor([0.0, 1.0], device=y.device),
                method="rk4", options={"step_size": 0.25},
            )  # fmt: skip
            y, *integrals = (state[-1] for state in states)
            totals[:] = [a + b for a, b in zip(totals, integrals, strict=True)]
        return y

    latents = []
    *scales, last = flow.scales
    for scale in scales:
        y = F.pixel_unshuffle(through(scale.before, y), 2)
        y, latent = through(scale.after, y).chunk(2, dim=1)
        latents.append(latent)
    y = through(last.before, y)
    delta, kinetic, jacobian = totals
    z = torch.cat([latent.flatten(1) for latent in (*latents, y)], dim=1)
    bits = bits_per_dim(standard_normal_log_prob(z) + delta, x[0].numel())
    return weighted(bits, kinetic, jacobian)


class InFloat32(Contender):
    """A contender whose convolutions are not rounded to TF32."""

    def step(self) -> tuple[Tensor, Tensor, tuple[int, int]]:
        conv: Any = torch.backends.cudnn.conv
        before, conv.fp32_precision = conv.fp32_precision, "ieee"
        try:
            return super().step()
        finally:
            conv.fp32_precision = before


def compare(
    make: Callable[..., MultiScaleCNF], x: Tensor, compiled: bool, repeats: int = 5
) -> str:
    """Markdown table at the weights of the flows that ``make`` gives."""
    device = x.device
    on_gpu = device.type == "cuda"

    def contender(
        loss: Callable[..., Tensor] = own_loss,
        bf16: bool = False,
        kind: type[Contender] = Contender,
        **options: Any,
    ) -> Contender:
        flow = make(**options).to(device)

        def loss_of_batch() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return loss(flow, x)

        return kind(flow, loss_of_batch)

    plain = partial(plain_loss, forward_mode=True)
    contenders = {"torchdiffeq adjoint, double backward": contender(plain_loss)}
    settings: dict[str, dict[str, Any]] = {
        "`MultiScaleCNF`": {},
        "`FixedGridSolver(checkpoint=True)`": {"checkpoint": True},
    }
    if compiled:
        settings["compiled field"] = {"compile_field": True}
        settings["`FixedGridSolver(compile=True)`"] = {"compile": True}
    for name, options in settings.items():
        contenders[name] = contender(**options)
        if on_gpu:
            contenders[f"{name}, bf16"] = contender(bf16=True, **options)
    if on_gpu:
        contenders["plain code, J e, autograd"] = contender(plain)
        contenders["plain code, J e, no TF32"] = contender(plain, kind=InFloat32)
        contenders["`MultiScaleCNF`, no TF32"] = contender(kind=InFloat32)
    exact = contender(plain, kind=InFloat32)
    return measure(f"batch {len(x)}, 10 blocks, {device.type}", contenders, exact, repeats, 2)


def run(compiled: bool = True) -> str:
    """Measure, and tell as a Markdown table."""
    device = best_device()
    x = make_batch(200 if device.type == "cuda" else 16).to(device)
    return compare(make_flow, x, compiled)


if __name__ == "__main__":
    print(f"{machine()}\n\n{run(compiled='--eager' not in sys.argv)}")
