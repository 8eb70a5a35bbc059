"""Second and third total derivative."""

from typing import Literal

import torch
from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, integrated_square
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.problem import VectorField
from steer_lightning.utils.schedule import Schedule


class Acceleration(Penalty):
    r"""Penalty on the squared second or third derivative of the trajectory in time (TayNODE).

    .. math:: \int \operatorname{mean}_d \Big(\frac{d^K y}{dt^K}\Big)^2 dt, \qquad
        \frac{d^2 y}{dt^2} = \partial_t f + \partial_y f\, f

    by its value at one uniform time, times the length of the span: unbiased. Derivatives are
    total ones, each by one forward-mode pass; nothing is held constant. The field must use its
    time as a tensor: ``float(t)`` or ``torch.full_like(y, t)`` hides how it depends on it.

    Args:
        weight: See :class:`Penalty`.
        order: ``K``; 3 takes a pass over a pass.

    Raises:
        ValueError: If the order is another, or the weight is negative.

    References:
        Kelly et al., *Learning differential equations that are easy to solve*, NeurIPS 2020,
        arXiv:2007.04504, Section 3.
    """

    def __init__(self, weight: float | Schedule, order: Literal[2, 3] = 2) -> None:
        super().__init__(weight)
        check_choice("order", str(order), ("2", "3"))
        self.order = order

    def value(self, probed: Probed) -> Tensor:
        derivative = field = probed.vector_field
        for _ in range(self.order - 1):
            derivative = _derivative(derivative, field)
        return integrated_square(derivative(probed.t[0], probed.y[0]), probed)


def _derivative(g: VectorField, field: VectorField) -> VectorField:
    """The function ``d/dt g(t, y(t))`` along the solutions of ``y' = field(t, y)``."""
    return lambda t, y: torch.func.jvp(g, (t, y), (torch.ones_like(t), field(t, y)))[1]
