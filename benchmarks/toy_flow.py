"""The two-dimensional flow that the benchmarks step: one set of weights, one batch."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from benchmarks.timing import Contender
from datamodules.toy_densities import get_density
from steer_lightning.nn import CNF, ConcatSquashField
from steer_lightning.nn.likelihood import standard_normal_log_prob
from steer_lightning.solvers import SolveStats

BATCH_SIZE, TRAINING_STEPS = 512, 400

# Carries points and their change of log-density along a field, from 1 to 0.
Integrate = Callable[[nn.Module, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


def make_batches(n: int) -> list[Tensor]:
    """Batches of the eight Gaussians, each of shape ``(512, 2)``."""
    density, generator = get_density("8gaussians"), torch.Generator().manual_seed(1)
    return [density.sample(BATCH_SIZE, generator) for _ in range(n)]


def make_field(training_steps: int = 0) -> ConcatSquashField:
    """The field of PyTorch's weights at seed 0, or after steps of training by ``CNF``."""
    return copy.deepcopy(_trained(training_steps))


@cache
def _trained(training_steps: int) -> ConcatSquashField:
    torch.manual_seed(0)
    field = ConcatSquashField(2, (64, 64, 64))
    flow, optimizer = CNF(field, (2,)), torch.optim.Adam(field.parameters(), lr=5e-3)
    for x in make_batches(training_steps):
        contender(flow, x).step()
        optimizer.step()
    return field


class PlainFlow(nn.Module):
    """The flow by a solver that is not ours."""

    def __init__(
        self,
        field: ConcatSquashField,
        integrate: Integrate | None = None,
        double_backward: bool = False,
    ) -> None:
        super().__init__()
        self.field = field
        self.integrate = through_torchdiffeq(odeint_adjoint) if integrate is None else integrate
        self.double_backward = double_backward
        self.stats = SolveStats()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of the points and of their log-density."""
        self.stats.count("nfe")
        y, _ = state
        if not self.double_backward:
            return self.field.value_and_divergence(t, y)
        with torch.enable_grad():
            y = y.requires_grad_(True)
            dy = self.field(t, y)
            divergence = sum(
                torch.autograd.grad(dy[:, i].sum(), y, create_graph=True)[0][:, i]
                for i in range(y.shape[1])
            )
        return dy, divergence

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at ``x``."""
        z, delta = self.integrate(self, (x, x.new_zeros(len(x))))
        return standard_normal_log_prob(z) + delta


def through_torchdiffeq(
    odeint: Callable[..., tuple[Tensor, Tensor]], tol: float = 1e-5
) -> Integrate:
    """dopri5 of torchdiffeq, by its ``odeint`` or ``odeint_adjoint``."""

    def integrate(field: nn.Module, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        times = torch.tensor([1.0, 0.0]).to(state[0])
        zs, deltas = odeint(field, state, times, rtol=tol, atol=tol, method="dopri5")
        return zs[-1], deltas[-1]

    return integrate


def contender(flow: CNF | PlainFlow, x: Tensor) -> Contender:
    """The flow and its loss at ``x``."""
    return Contender(flow, lambda: -flow.log_prob(x).mean())
