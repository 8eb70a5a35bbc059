"""Initial value problems with solutions in closed form, in float64."""

import torch
from torch import Tensor, nn


class LinearField(nn.Module):
    """``y' = A y``, without time: ``y(t) = exp(A (t - t0)) y0``."""

    autonomous = True

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[-0.3, 1.0], [-0.8, -0.1]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.a.T

    def exact(self, y0: Tensor, t0: float, t1: Tensor | float) -> Tensor:
        return y0 @ torch.linalg.matrix_exp(self.a * (t1 - t0)).T


class TimedLinearField(nn.Module):
    """``y' = t A y``: its flow is a matrix exponential, and carries normals to normals."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.6, 0.4], [-0.5, 0.3]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return t[..., None] * (y @ self.matrix.T)

    def flow(self, start: Tensor | float, end: Tensor | float) -> Tensor:
        """The matrix that carries states from one time to another."""
        return torch.linalg.matrix_exp(self.matrix * (end**2 - start**2) / 2)


class CosineField(nn.Module):
    """``y' = a cos(t) y``: ``y(t) = y0 exp(a (sin t - sin t0))``; ``t`` is ``()`` or ``(B,)``."""

    def __init__(self, a: float = 0.9) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.a * torch.cos(t).reshape(-1, 1) * y

    def exact(self, y0: Tensor, t0: Tensor | float, t1: Tensor | float) -> Tensor:
        def antiderivative(t: Tensor | float) -> Tensor:
            return torch.sin(torch.as_tensor(t, dtype=torch.float64)).reshape(-1, 1)

        return y0 * torch.exp(self.a * (antiderivative(t1) - antiderivative(t0)))


class OscillatorField(nn.Module):
    """``x' = v, v' = -w^2 x``, with the state a tuple ``(x, v)``."""

    def __init__(self, w: float = 2.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = y
        return v, -self.w.square() * x

    def exact(
        self, y0: tuple[Tensor, Tensor], t0: float, t1: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        x, v = y0
        angle = self.w * (t1 - t0)
        return (
            x * torch.cos(angle) + v / self.w * torch.sin(angle),
            v * torch.cos(angle) - x * self.w * torch.sin(angle),
        )


def initial_state(batch: int = 3, dim: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """A fixed state, shape ``(batch, dim)``, away from zero."""
    return torch.linspace(0.5, 1.5, batch * dim, dtype=dtype).reshape(batch, dim)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def jacobians(vector_field: nn.Module, t: Tensor, y: Tensor) -> Tensor:
    """The Jacobian of each sample by itself, by reverse mode: ``(B, D, D)``, rows are outputs."""

    def of(t: Tensor, sample: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(
            lambda flat: vector_field(t, flat.view(1, *sample.shape)).flatten(), sample.flatten()
        )

    return torch.stack([of(t[i] if t.ndim else t, sample) for i, sample in enumerate(y)])
