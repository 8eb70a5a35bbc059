"""Dormand-Prince with dense output: one smooth solve, read at any times of any sample."""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from steer_lightning.solvers.base import (
    CountedField,
    SolveStats,
    VectorField,
    check_problem,
    has_float64,
)
from steer_lightning.solvers.errors import NonFiniteStateError, StepSizeUnderflowError
from steer_lightning.solvers.tf32 import TF32Check

# Stage times and weights of the 5(4) pair, the last row the solution's; error weights; weights of
# each slope in the powers 1 to 4 of the quartic interpolant.
_C: Final = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: Final = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR: Final = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)
_INTERPOLANT: Final = (
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)


class DenseSolution(NamedTuple):
    r"""A solution that can be read at any time of its interval.

    Args:
        knots: Ends of the steps taken, shape ``(N + 1,)``, in the direction of the solve.
        coefficients: Of each step's quartic in its own time :math:`\theta \in [0, 1]`,
            :math:`y = \sum_k c_k \theta^k`, shape ``(N, B, 5, L)``.
        stats: The counts this solve was added to.
    """

    knots: Tensor
    coefficients: Tensor
    stats: SolveStats

    def at(self, t: Tensor) -> Tensor:
        """States at times of the interval.

        Args:
            t: One time grid for each sample, shape ``(B, T)``.

        Returns:
            States, shape ``(B, T, L)``.

        Raises:
            ValueError: If the grids are not one for each sample, or a time is outside the
                interval of the solve.
        """
        n_samples, n_powers, n_latents = self.coefficients.shape[1:]
        if t.ndim != 2 or len(t) != n_samples:
            raise ValueError(
                f"Expected times of shape (B, T) for B = {n_samples} samples, but got shape "
                f"{tuple(t.shape)}."
            )
        first, last = self.knots[0], self.knots[-1]
        rounding = 8.0 * torch.finfo(t.dtype).eps * torch.maximum(first.abs(), last.abs())
        t = t.to(self.knots)
        inside = (t >= torch.minimum(first, last) - rounding) & (
            t <= torch.maximum(first, last) + rounding
        )
        if not bool(inside.all()):
            raise ValueError(
                f"Expected times between {float(first):g} and {float(last):g}, where the solve "
                f"ran, but got {float(t[~inside][0].detach()):g}."
            )
        sign = torch.sign(last - first)
        step = torch.searchsorted(sign * self.knots[1:-1], (sign * t).contiguous())
        theta = (t - self.knots[step]) / self.knots.diff()[step]
        row = step * n_samples + torch.arange(n_samples, device=t.device)[:, None]
        # Rows, because the backward pass of index_select is faster than that of indexing.
        rows = self.coefficients.flatten(0, 1).index_select(0, row.flatten())
        powers = rows.view(*t.shape, n_powers, n_latents).unbind(2)
        theta = theta.to(rows)[..., None]
        y = powers[-1]
        for c in reversed(powers[:-1]):
            y = c + theta * y
        return y


class DenseSolver:
    r"""Adaptive Dormand-Prince 5(4), solved once and read anywhere by its quartic interpolant.

    The steps follow the solution and not the times asked for, so that thousands of different
    times cost no more evaluations than two. Gradients, in the state and the parameters, are
    autograd's, through the steps; step sizes and the ends of the interval are constants.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit.

    Raises:
        ValueError: If a tolerance or ``max_nfe`` is not positive.

    References:
        Dormand and Prince, *A family of embedded Runge-Kutta formulae*, 1980; Shampine, *Some
        practical Runge-Kutta formulas*, 1986, for the interpolant.

    Example:
        >>> solver = DenseSolver(rtol=1e-6, atol=1e-6)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(2, 1), torch.tensor([0.0, 1.0]))
        >>> solution.at(torch.tensor([[0.5], [1.0]])).flatten()
        tensor([0.6065, 0.3679])
    """

    def __init__(
        self, rtol: float = 1e-3, atol: float = 1e-4, max_nfe: int | None = 10_000
    ) -> None:
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            if not (math.isfinite(tolerance) and tolerance > 0):
                raise ValueError(f"Expected `{name}` to be finite and > 0, but got {tolerance}.")
        if max_nfe is not None and max_nfe < 1:
            raise ValueError(f"Expected `max_nfe` to be None or >= 1, but got {max_nfe}.")
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe
        self._check_tf32 = TF32Check()

    def __repr__(self) -> str:
        return f"DenseSolver(rtol={self.rtol:g}, atol={self.atol:g})"

    def solve(
        self,
        vector_field: VectorField,
        y0: Tensor,
        t_span: Tensor,
        *,
        stats: SolveStats | None = None,
    ) -> DenseSolution:
        """Integrate :math:`dy/dt = f(t, y)` over an interval.

        Args:
            vector_field: ``f(t, y)``, with ``t`` of shape ``()``.
            y0: State at ``t_span[0]``, shape ``(B, L)``, float32 or float64.
            t_span: Ends of the interval, shape ``(2,)``, either direction.
            stats: Counts to add to; fresh ones if not given.

        Returns:
            The solution over the whole interval, and the counts.

        Raises:
            ValueError: If shapes are wrong, or the interval or the batch is empty.
            TypeError: If a dtype is not supported.
            SolverError: If the state becomes NaN, steps become too small, or ``max_nfe`` is
                exceeded.
        """
        check_problem(y0, t_span)
        if not isinstance(y0, Tensor) or y0.ndim != 2 or len(t_span) != 2:
            shape = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
            raise ValueError(
                f"Expected a state of shape (B, L) and the two ends of an interval, but got "
                f"{shape} and {len(t_span)} times. Ask for states in between afterwards: "
                f"solution.at(t)."
            )
        self._check_tf32(vector_field, y0, self.rtol)
        stats = SolveStats() if stats is None else stats
        counted = CountedField(vector_field, stats, self.max_nfe, (self.rtol, self.atol))
        field = _FieldAtNumbers(counted, t_span)
        # Step sizes are numbers: a GPU is waited for once a step, to hear of the error.
        t, t1 = t_span.tolist()
        y, slope = y0, field(t, y0)
        dt, error = self._first_step(field, t, t1, y, slope), 0.0
        knots: list[float] = [t]
        ys: list[Tensor] = []
        slopes: list[list[Tensor]] = []
        while t != t1:
            last = abs(t1 - t) <= abs(dt)
            dt = t1 - t if last else dt
            if t + dt == t:
                if math.isfinite(error):
                    raise counted.place(StepSizeUnderflowError(dt, t, "forward"), y)
                raise counted.place(NonFiniteStateError(t, "forward"), y)
            counted.dt = dt
            stages, y_next = _stages(field, t, dt, y, slope)
            with torch.no_grad():
                difference = dt * _combine(stages, _ERROR)
            error = self._error(difference, y, y_next)
            accepted = error <= 1.0
            stats.count_step("forward", accepted=accepted)
            if accepted:
                if not (last and ys):  # the last step is as short as what is left
                    stats.smallest_dt = min(stats.smallest_dt, abs(dt))
                ys.append(y)
                slopes.append(stages)
                t = t1 if last else t + dt
                knots.append(t)
                y, slope = y_next, stages[-1]
            # An overflow may be the fault of a step too long.
            factor = 0.9 * max(error, 1e-10) ** -0.2 if math.isfinite(error) else 0.2
            dt *= min(max(factor, 0.2), 10.0 if accepted else 1.0)
        precision = torch.float64 if has_float64(y0.device) else torch.float32
        ends = torch.tensor(knots, dtype=precision, device=y0.device)
        return DenseSolution(ends, _quartics(ys, slopes, ends), stats)

    @torch.no_grad()
    def _error(self, difference: Tensor, *states: Tensor) -> float:
        """Root mean square of a difference of states, in units of the tolerance."""
        size = torch.stack([y.abs() for y in states]).amax(0)
        return float((difference / (self.atol + self.rtol * size)).square().mean().sqrt())

    @torch.no_grad()
    def _first_step(
        self, field: "_FieldAtNumbers", t: float, t1: float, y: Tensor, slope: Tensor
    ) -> float:
        """Hairer, Norsett and Wanner, *Solving ODEs I*, Section II.4."""
        d0, d1 = self._error(y, y), self._error(slope, y)
        counted = field.vector_field
        if not (math.isfinite(d0) and math.isfinite(d1)):
            raise counted.place(NonFiniteStateError(t, "forward"), y)
        h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
        h0 = math.copysign(min(h0, abs(t1 - t)), t1 - t)
        d2 = self._error(field(t + h0, y + h0 * slope) - slope, y) / abs(h0)
        if not math.isfinite(d2):
            raise counted.place(NonFiniteStateError(t, "forward"), y)
        steepest = max(d1, d2)
        h1 = max(1e-6, 1e-3 * abs(h0)) if steepest <= 1e-15 else (0.01 / steepest) ** 0.2
        return math.copysign(min(100.0 * abs(h0), h1, abs(t1 - t)), t1 - t)


class _FieldAtNumbers:
    """A field that is asked at times that are numbers."""

    def __init__(self, vector_field: CountedField, t_span: Tensor) -> None:
        self.vector_field = vector_field
        self.t_span = t_span

    def __call__(self, t: float, y: Tensor) -> Tensor:
        slope: Tensor = self.vector_field(self.t_span.new_full((), t), y)
        return slope.to(y.dtype)  # of a network under autocast


def _stages(
    field: _FieldAtNumbers, t: float, dt: float, y: Tensor, slope: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The seven slopes of a step, the last one at its end, and the state there."""
    slopes, y_stage = [slope], y
    for c, row in zip(_C[1:], _A[1:], strict=True):
        y_stage = _add(y, slopes, row, dt)
        slopes.append(field(t + c * dt, y_stage))
    return slopes, y_stage


def _add(y: Tensor, slopes: list[Tensor], weights: tuple[float, ...], dt: float) -> Tensor:
    """Add slopes to a state; one operation each, and no conversion of a number to a tensor."""
    for w, slope in zip(weights, slopes, strict=True):
        if w != 0.0:
            y = torch.add(y, slope, alpha=dt * w)
    return y


def _combine(slopes: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    (w, k), *rest = terms
    total = w * k
    for w, k in rest:
        total = torch.add(total, k, alpha=w)
    return total


def _quartics(ys: list[Tensor], slopes: list[list[Tensor]], knots: Tensor) -> Tensor:
    """Coefficients of every step, shape ``(N, B, 5, L)``, from its state and seven slopes."""
    y = torch.stack(ys)
    dt = knots.diff().to(y)[:, None, None]
    stages = [torch.stack(stage) for stage in zip(*slopes, strict=True)]
    # Not a matrix product, whose precision autocast and TF32 lower.
    powers = [dt * _combine(stages, weights) for weights in zip(*_INTERPOLANT, strict=True)]
    return torch.stack([y, *powers], dim=2)
