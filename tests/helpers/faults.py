"""A model whose solves fail on the batches that ask for it."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import (
    NFEBudgetExceededError,
    NonFiniteStateError,
    StepSizeUnderflowError,
    TorchdiffeqSolver,
)
from tests.helpers.models import TinyModule, seeded, tiny_trainer

MAX_NFE = 1000
# What a sample asks for, by the number in its last column.
MARKS = {"none": 0.0, "blow-up": 1.0, "budget": 2.0, "adjoint": 3.0, "nan": 4.0}

# The gradient under which each fails, the error and the phase.
FAULTS = {
    "nan": ("autograd", NonFiniteStateError, "forward"),
    "blow-up": ("autograd", StepSizeUnderflowError, "forward"),
    "budget": ("adjoint", NFEBudgetExceededError, "forward"),
    "adjoint": ("adjoint", NFEBudgetExceededError, "backward"),
}
WRAPPED = {"training_step", "backward", "optimizer_step", "lr_scheduler_step", "log"}


class FaultyField(nn.Module):
    """Tame, unless a sample's last column says otherwise; a clock in the second column."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.4, 0.2]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, c = self.w
        x, fault = y[:, :1], y[:, 2:]
        dx = torch.tanh(a * x + b * t.reshape(-1, 1) + c)
        dx = torch.where(fault == MARKS["blow-up"], 40.0 * (1.0 + x * x), dx)
        quick = 20.0 * torch.cos(2e3 * t)
        dx = torch.where(fault == MARKS["budget"], quick * x, dx)
        # Nothing happens in the forward solve, but to the adjoint.
        dx = torch.where(fault == MARKS["adjoint"], dx + quick * (x - x.detach()), dx)
        return torch.cat([dx, torch.ones_like(x), torch.zeros_like(x)], dim=1)


class FaultyModel(TinyModule):
    """Adam, a schedule that counts steps, and running statistics, to be left alone."""

    def __init__(self, gradient: str = "autograd") -> None:
        super().__init__()
        solver = TorchdiffeqSolver(rtol=1e-4, atol=1e-4, gradient=gradient, max_nfe=MAX_NFE)
        self.block = ODEBlock(FaultyField(), solver)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, y0: Tensor) -> Tensor:
        return self.block(y0)

    def loss(self, batch: Tensor) -> Tensor:
        normed = self.norm(batch[:, :1])
        return super().loss(batch) + 0.1 * (normed - 1.0).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def batches(*faults: str, batch_size: int = 4) -> list[Tensor]:
    """One batch for each fault; the tame ones are the same wherever they stand."""
    found, n_tame = [], 0
    for fault in faults:
        x = torch.linspace(-1.0, 1.0, batch_size).reshape(-1, 1)
        x = x + 0.1 * n_tame
        n_tame += fault == "none"
        marks = torch.zeros_like(x)
        marks[1] = MARKS[fault]
        if fault == "nan":
            x[1] = float("nan")
        found.append(torch.cat([x, torch.zeros_like(x), marks], dim=1))
    return found


def loader(*faults: str) -> DataLoader:
    return DataLoader(batches(*faults), batch_size=None)


def state_of(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Every number that a step changes: weights, buffers, moments, schedule, count of steps."""
    (optimizer,) = trainer.optimizers
    state = {f"model.{k}": v.clone() for k, v in trainer.lightning_module.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    state["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
    for i, config in enumerate(trainer.lr_scheduler_configs):
        state[f"schedule.{i}"] = torch.tensor(config.scheduler.last_epoch)
    state["global_step"] = torch.tensor(trainer.global_step)
    return state


def fit(guard, *faults, gradient="autograd", before=(), after=(), model=None, **settings):
    model = seeded(FaultyModel, gradient) if model is None else model
    callbacks = (*before, *(() if guard is None else (guard,)), *after)
    trainer = tiny_trainer(*callbacks, **settings)
    trainer.fit(model, loader(*faults))
    return trainer


def untouched(model):
    return not WRAPPED & vars(model).keys() and isinstance(model.block.solver, TorchdiffeqSolver)


def scaled():
    """Settings of float16 with a gradient scaler, and the scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}, scaler
