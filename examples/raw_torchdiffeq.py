"""STEER for code that calls torchdiffeq itself: fit a spiral from pieces of it.

``python examples/raw_torchdiffeq.py`` takes some seconds on a CPU.
"""

import torch
from torch import nn
from torchdiffeq import odeint

from steer_lightning import steer

MATRIX = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])


class Field(nn.Module):
    """A learned vector field, as torchdiffeq takes it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, y):
        return self.net(y)


class Model(nn.Module):
    """The state after one unit of time."""

    def __init__(self):
        super().__init__()
        self.field = Field()

    def forward(self, y0):
        return odeint(self.field, y0, torch.tensor([0.0, 1.0]), rtol=1e-4, atol=1e-4)[-1]


def main(steps=300):
    """Train with STEER; the losses."""
    torch.manual_seed(0)
    model, losses = Model(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        y0 = torch.randn(128, 2)
        # The field that odeint is given moves; `end_times` says where to, so that the target can.
        with steer(model, b=0.5, step=step, seed=0, vector_fields=["field"]) as end_times:
            predicted = model(y0)
            end_time = end_times["steer/field/end_time"]
            loss = (predicted - y0 @ torch.linalg.matrix_exp(end_time * MATRIX).T).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"mean squared error {losses[0]:.3f} -> {losses[-1]:.5f}")
