"""Step sizes: of the first step, and after each one tried."""

import math
from typing import Any, Final

import torch

from steer_lightning.solvers.errors import NonFiniteStateError
from steer_lightning.solvers.runge_kutta import advance, error_ratio, evaluate
from steer_lightning.solvers.work import Work
from steer_lightning.utils.problem import VectorField, parts

SAFETY: Final = 0.9
SHRINK, GROW = 0.2, 10.0  # in one step
# Share of the error that came before; against steps that alternate between long and short.
MEMORY: Final = 0.03


class StepController:
    r"""A proportional-integral controller of the step size.

    .. math:: h_{n+1} = 0.9\, h_n\, \epsilon_n^{-1/p + 0.0225}\, \epsilon_{n-1}^{0.03}

    with the error ratios :math:`\epsilon` of this accepted step and of the one before, at most
    tenfold and at least a fifth of it, and after a rejected step no longer than that.

    Args:
        order: Order :math:`p` of the method, whose embedded error falls with :math:`h^p`.

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.2.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._error_before = 0.01
        self._may_grow = True

    def next_step(self, h: float, error: float) -> float:
        """Length of the step after one of length ``h`` with an error ratio."""
        if not math.isfinite(error):  # an overflow may be the fault of a step too long
            self._may_grow = False
            return SHRINK * h
        error = max(error, 1e-10)
        if error > 1.0:
            self._may_grow = False
            return self.best_step(h, error)
        factor = SAFETY * math.pow(error, -1.0 / self.order + 0.75 * MEMORY)
        factor = max(SHRINK, factor * math.pow(self._error_before, MEMORY))
        factor = min(factor, GROW if self._may_grow else 1.0)
        self._error_before, self._may_grow = max(error, 1e-4), True
        return h * factor

    def best_step(self, h: float, error: float) -> float:
        """Length that would have been good in place of a step of length ``h``."""
        factor = SAFETY * math.pow(max(error, 1e-10), -1.0 / self.order)
        return h * min(max(factor, SHRINK), GROW)


def find_first_step(
    vector_field: VectorField,
    t: float,
    t1: float,
    y: Any,
    slope: Any,
    order: int,
    tolerances: tuple[float, float],
    controlled: int | None,
    work: Work,
) -> float:
    """Length of a first step, by one further evaluation near the start.

    Along a slope of size :math:`d` in units of the tolerance, which turns at the relative rate
    :math:`L`, the error of a step is taken to be :math:`10^{-3} d L^{p-1} h^p`; the step is to
    have a tenth of what is allowed.

    Raises:
        NonFiniteStateError: If the field is NaN or infinite at the start.

    References:
        After Hairer, Norsett and Wanner, *Solving ODEs I*, Section II.4.
    """

    @torch.no_grad()
    def size(x: Any) -> float:
        return float(error_ratio(y, y, [x], 1.0, (1.0,), tolerances, controlled))

    span, state_size, slope_size = abs(t1 - t), size(y), size(slope)
    if not (math.isfinite(state_size) and math.isfinite(slope_size)):
        raise work.place(NonFiniteStateError(t, work.phase))
    if slope_size * span < 1e-30:  # nothing moves, and powers of less would underflow
        return span
    change = state_size / slope_size  # the time in which the state changes by its own size
    trial = min(max(0.01 * change, 1e-3 * span), 0.1 * span)
    h = math.copysign(trial, t1 - t)
    work.spend(1, t)
    turned = evaluate(vector_field, t + h, advance(y, h, (1.0,), [slope]))
    turn = [(a - b).detach() for a, b in zip(parts(turned), parts(slope), strict=True)]
    rate = size(tuple(turn) if isinstance(y, tuple) else turn[0]) / (trial * slope_size)
    if not math.isfinite(rate):  # too far already
        return 1e-3 * trial
    # A slope that happens not to turn here turns elsewhere.
    turning = math.pow(max(rate, 0.3 / max(change, 0.1 * span)), order - 1)
    return min(math.pow(100.0 / (slope_size * turning), 1.0 / order), span)
