"""The two-dimensional flow that the benchmarks step: one set of weights, one batch."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from steer_lightning.functional import standard_normal_log_prob
from steer_lightning.nn import CNF, ConcatSquashField

BATCH_SIZE = 512


def make_field() -> ConcatSquashField:
    """The field of PyTorch's weights at seed 0, large enough to be no identity."""
    torch.manual_seed(0)
    return ConcatSquashField(2, (64, 64, 64))


def make_batch() -> Tensor:
    """Points around the eight Gaussians, shape ``(512, 2)``."""
    generator = torch.Generator().manual_seed(1)
    return 2.0 * torch.randn(BATCH_SIZE, 2, generator=generator)


class PlainFlow(nn.Module):
    """The flow as it is commonly written: adjoint, and a trace by double backward.

    Args:
        field: ``f(t, y)``.
        rtol: Both tolerances of dopri5.
    """

    def __init__(self, field: nn.Module, rtol: float = 1e-5) -> None:
        super().__init__()
        self.field = field
        self.rtol = rtol

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of the points and of their log-density."""
        y, _ = state
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
        zs, deltas = odeint_adjoint(
            self, (x, x.new_zeros(len(x))), torch.tensor([1.0, 0.0]),
            rtol=self.rtol, atol=self.rtol, method="dopri5",
        )  # fmt: skip
        return standard_normal_log_prob(zs[-1]) + deltas[-1]


def training_step(
    flow: CNF | PlainFlow, x: Tensor, parameters: Iterable[nn.Parameter]
) -> tuple[float, Tensor]:
    """Loss and gradient of one step."""
    parameters = list(parameters)
    for p in parameters:
        p.grad = None
    loss = -flow.log_prob(x).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def stepper(flow: CNF | PlainFlow, field: nn.Module, x: Tensor) -> Callable[[], object]:
    """A step to be timed."""
    return lambda: training_step(flow, x, field.parameters())
