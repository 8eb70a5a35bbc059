"""A stub solver, and models so small that a fit takes a moment and tells which T it used."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning.nn import ConvFlowField, MultiScaleCNF, ODEBlock
from steer_lightning.solvers import (
    FixedGridSolver,
    Solution,
    Solver,
    SolveStats,
    TorchdiffeqSolver,
)


class StubSolver(Solver):
    """One Euler step to each time; keeps the field, state and times of every solve."""

    def __init__(self) -> None:
        self.fields: list[Any] = []
        self.t_evals: list[Tensor] = []
        self.y0s: list[Any] = []

    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        self.fields.append(vector_field)
        self.y0s.append(y0)
        self.t_evals.append(t_eval)
        slope = vector_field(t_eval[0], y0)
        ys = torch.stack([y0 + (t - t_eval[0]) * slope for t in t_eval])
        return Solution(ys, SolveStats() if stats is None else stats)


class RecordingField(nn.Module):
    """Passes calls on and keeps the times."""

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.times: list[Tensor] = []

    def forward(self, t: Tensor, y: Any) -> Any:
        self.times.append(t.detach().clone())
        return self.vector_field(t, y)


class ClockField(nn.Module):
    """A field in time and state, beside a clock ``c' = 1`` that shows how long it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.4, 0.2]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, c = self.w
        x = y[:, :1]
        return torch.cat([torch.tanh(a * x + b * t.reshape(-1, 1) + c), torch.ones_like(x)], dim=1)


class TinyModule(pl.LightningModule):
    """Fits the first column of :class:`ClockField`; keeps the end time of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        self.evaluated: list[Tensor] = []

    def loss(self, batch: Tensor) -> Tensor:
        y = self(batch)
        self.ends.append(float(y[0, 1].detach()))
        return (y[:, 0] - 1.0).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluated.append(self(batch))

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnModel(TinyModule):
    """A model that solves through our block."""

    def __init__(self, gradient: str = "autograd", t_span: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        solver = TorchdiffeqSolver(rtol=1e-4, atol=1e-4, gradient=gradient)
        self.block = ODEBlock(ClockField(), solver, t_span)

    def forward(self, y0: Tensor) -> Tensor:
        return self.block(y0)


class ForeignModel(TinyModule):
    """A model that calls torchdiffeq by itself."""

    def __init__(self, adjoint: bool = False) -> None:
        super().__init__()
        self.func = ClockField()
        self.odeint = odeint_adjoint if adjoint else odeint

    def forward(self, y0: Tensor) -> Tensor:
        t = torch.tensor([0.0, 1.0])
        return self.odeint(self.func, y0, t, rtol=1e-4, atol=1e-4, method="dopri5")[-1]


def tiny_data(n: int = 8) -> Tensor:
    """Initial states: a column of data and the clock at zero."""
    x = torch.linspace(-1.0, 1.0, n).reshape(-1, 1)
    return torch.cat([x, torch.zeros_like(x)], dim=1)


def tiny_loader(n: int = 8, batch_size: int = 4) -> DataLoader:
    return DataLoader(tiny_data(n), batch_size=batch_size)


def tiny_trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """One epoch on the CPU, with nothing on the side."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def seeded(model_class: type[TinyModule], *args: Any, **kwargs: Any) -> Any:
    """A model with weights that depend on nothing but a seed; the global stream is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(*args, **kwargs)


def lively(module: nn.Module, scale: float = 0.3) -> Any:
    """Normal noise added to every weight: no layer keeps its zero initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


def image_flow(event_shape: tuple[int, ...] = (1, 4, 4), **settings: Any) -> MultiScaleCNF:
    """A flow of tiny images with three hidden channels, as initialised."""
    defaults: dict[str, Any] = {
        "vector_field": lambda channels: ConvFlowField(channels, (3,)),
        "solver": FixedGridSolver("rk4", n_steps=2),
    }
    return MultiScaleCNF(event_shape, **{**defaults, **settings})
