"""Stiff systems with known right-hand sides: Section 4.4's equation, Robertson, Van der Pol."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class TwoScaleField(nn.Module):
    r"""The stiff equation of the STEER paper, :math:`y' = -r y + 3 r - 2 r e^{-t}`.

    Args:
        r: Rate of the fast part.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.4.
    """

    def __init__(self, r: float = 1000.0) -> None:
        super().__init__()
        self.log_r = nn.Parameter(torch.tensor(r, dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative of ``y``, shape ``(B, 1)``."""
        return self.log_r.exp() * (3.0 - y - 2.0 * torch.exp(-t))


class RobertsonField(nn.Module):
    r"""Robertson's chemical reactions of three species.

    .. math::
        y_1' &= -k_1 y_1 + k_3 y_2 y_3 \\
        y_2' &= k_1 y_1 - k_3 y_2 y_3 - k_2 y_2^2 \\
        y_3' &= k_2 y_2^2

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.1.
    """

    autonomous = True

    def __init__(self) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative of ``y``, shape ``(B, 3)``."""
        a, b, c = y.unbind(-1)
        slow, fast, back = self.log_rates.exp()
        first, last = back * b * c - slow * a, fast * b * b
        return torch.stack([first, -first - last, last], dim=-1)


class LienardField(nn.Module):
    r"""Van der Pol's oscillator, :math:`x'' = \mu (1 - x^2) x' - x`, in Liénard's coordinates.

    .. math:: z = x' / \mu - x + x^3 / 3, \qquad x' = \mu (z + x - x^3 / 3), \qquad z' = -x / \mu

    Both are of order one where :math:`x'` itself runs over six orders of magnitude: the slow parts
    follow the curve :math:`z = x^3 / 3 - x`, and a jump goes from one branch to the other.

    Args:
        mu: Damping.

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.1.
    """

    autonomous = True

    def __init__(self, mu: float = 1000.0) -> None:
        super().__init__()
        self.log_mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative of ``y``, shape ``(B, 2)``."""
        x, z = y.unbind(-1)
        mu = self.log_mu.exp()
        return torch.stack([mu * (z + x - x**3 / 3.0), -x / mu], dim=-1)


class StiffSystem(NamedTuple):
    """An initial value problem.

    Args:
        vector_field: Its field, in float64.
        y0: Initial state of one sample.
        t_span: First and last time.
        scale: Size of each component, to divide errors by and to scale states with.
    """

    vector_field: nn.Module
    y0: tuple[float, ...]
    t_span: tuple[float, float]
    scale: tuple[float, ...]


def two_scales(r: float = 1000.0) -> StiffSystem:
    """Section 4.4's equation over the times it is trained on."""
    return StiffSystem(TwoScaleField(r), (0.0,), (0.0, 15.0), (3.0,))


def robertson(t1: float = 1e5) -> StiffSystem:
    """Robertson's problem from its start."""
    return StiffSystem(RobertsonField(), (1.0, 0.0, 0.0), (0.0, t1), (1.0, 4e-5, 1.0))


def lienard(mu: float = 1000.0) -> StiffSystem:
    """A bit more than one turn of Van der Pol's oscillator, in Liénard's coordinates."""
    return StiffSystem(LienardField(mu), (2.0, 2.0 / 3.0), (0.0, 2.0 * mu), (2.0, 2.0 / 3.0))
