"""Stiff fields, and solves of them with few words."""

import torch
from torch import nn

from steer_lightning.solvers import RosenbrockSolver
from tests.helpers.problems import times


class Swing(nn.Module):
    """A nonlinear field of two components, with or without time."""

    def __init__(self, timed=True):
        super().__init__()
        self.autonomous = not timed
        self.w = nn.Parameter(times(1.0, 0.7, 3.0))

    def forward(self, t, y):
        x, v = y.unbind(-1)
        w, damping, rate = self.w
        push = 0.0 if self.autonomous else torch.sin(rate * t)
        return torch.stack([w * v + push * x, -x * v - damping * torch.sin(x)], dim=-1)


class Pull(nn.Module):
    """``y' = -r (y - cos t) - sin t``, each component with a rate of its own; ends at cos t."""

    def __init__(self, *rates):
        super().__init__()
        self.rates = nn.Parameter(times(*rates))

    def forward(self, t, y):
        return -self.rates[:, None] * (y - torch.cos(t)) - torch.sin(t)

    def exact(self, y0, t):
        return torch.cos(t) + (y0 - 1.0) * torch.exp(-self.rates[:, None] * t)


def two_scales(t, y):
    """The stiff equation of the STEER paper, Section 4.4."""
    return -1000.0 * y + 3000.0 - 2000.0 * torch.exp(-t)


def prothero_robinson(t, y):
    return -1e6 * (y - torch.cos(t))


def solve(field, y0, *ends, method="rodas5p", tolerance=1e-6, **settings):
    dense = settings.pop("dense", False)
    settings = {"rtol": tolerance, "atol": tolerance, "max_nfe": None, **settings}
    return RosenbrockSolver(method, **settings).solve(field, y0, times(*ends), dense=dense)
