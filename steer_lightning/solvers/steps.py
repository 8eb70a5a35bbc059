"""The accepted steps of a solve: states between them, and what they tell of the field."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import combine, error_ratio, rms
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.utils.problem import has_float64, parts


@dataclass(eq=False, repr=False)
class Steps:
    """The steps of a Runge-Kutta or Rosenbrock solve, with their stages.

    All that is computed here carries gradients in states and stages; lengths of steps are
    constants.

    Args:
        tableaus: Method of each of the ``N`` steps, with an interpolant.
        knots: Ends of the steps, shape ``(N + 1,)``, in the direction of the solve.
        states: State at each of them.
        stages: Stages of each step.
        tolerances: ``(rtol, atol)`` of an adaptive solve.
        controlled: Leading parts that set the step size; all if ``None``.
    """

    tableaus: Sequence[Tableau | RosenbrockTableau]
    knots: Tensor
    states: Sequence[Any]
    stages: Sequence[Sequence[Any]]
    tolerances: tuple[float, float] | None = None
    controlled: int | None = None
    _polynomials: tuple[Tensor, ...] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def lengths(self) -> list[float]:
        """Length of each step, negative in a solve back in time."""
        return self.knots.detach().diff().tolist()

    def at(self, t: Tensor) -> Any:
        """States at times of the interval, by the method's interpolant.

        Args:
            t: Times for all samples, shape ``(T,)``, or a grid for each sample, ``(B, T)``.

        Returns:
            States, shape ``(T, B, ...)``, or ``(B, T, ...)``; a tuple if the state is one.

        Raises:
            ValueError: If the shape is another, or a time is outside the interval of the solve.
        """
        state = self.states[0]
        n_samples = _batch_size(parts(state)[0])
        if t.ndim not in (1, 2) or (t.ndim == 2 and len(t) != n_samples):
            raise ValueError(
                f"Expected times of shape (T,), or (B, T) for B = {n_samples} samples, but got "
                f"shape {tuple(t.shape)}."
            )
        step, theta = self._locate(t if t.ndim == 2 else t[None])
        found = []
        for part, polynomials in zip(parts(state), self._coefficients(), strict=True):
            n = n_samples if t.ndim == 2 else _batch_size(part)
            place = theta.to(part.device, part.real.dtype).expand(n, -1)
            y = _evaluate(polynomials, step.to(part.device).expand(n, -1), place)
            if t.ndim == 1:
                found.append(y.transpose(0, 1).reshape(len(t), *part.shape))
            else:
                found.append(y.reshape(*t.shape, *part.shape[1:]))
        return tuple(found) if isinstance(state, tuple) else found[0]

    def error_estimates(self) -> Tensor:
        """Error of each step in units of the tolerance, shape ``(N,)``; see ``error_ratio``.

        Raises:
            ValueError: If the method has no embedded estimate.

        References:
            Pal et al., *Opening the blackbox*, ICML 2021, which penalises it.
        """
        ratios, both_ends = [], zip(self.states, self.states[1:], strict=False)
        for tableau, (y, y_next), ks, h in zip(
            self.tableaus, both_ends, self.stages, self.lengths, strict=True
        ):
            if not tableau.error or self.tolerances is None:
                raise ValueError(
                    "Expected an adaptive method, which estimates the error of its steps."
                )
            ratios.append(
                error_ratio(y, y_next, ks, h, tableau.error, self.tolerances, self.controlled)
            )
        return torch.stack(ratios)

    def stiffness_estimates(self) -> Tensor:
        r"""Estimate of the field's largest rate of change at each step, shape ``(N,)``, in 1/time.

        .. math:: \mathrm{RMS}(k_s - k_{s-1}) \,/\, \mathrm{RMS}(g_s - g_{s-1})

        with the last two stages :math:`k`, both at the end of the step, and the states :math:`g`
        they are evaluated at; zero where the states agree.

        Raises:
            ValueError: If the method does not evaluate the end of a step twice.

        References:
            Hairer and Wanner, *Solving ODEs II*, Section IV.2; Pal et al., *Opening the blackbox*.
        """
        rates = []
        for tableau, ks, h in zip(self.tableaus, self.stages, self.lengths, strict=True):
            if not isinstance(tableau, Tableau):
                raise ValueError(
                    "Expected an explicit method: a Rosenbrock method's stages are no slopes."
                )
            if tableau.c[-2:] != (1.0, 1.0):
                raise ValueError(
                    "Expected a method that evaluates the end of a step twice, as dopri5 and "
                    "tsit5 do."
                )
            rates.append(stiffness_rate(tableau, h, ks, self.controlled))
        return torch.stack(rates)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the step that holds each time, and the time's place in it, in [0, 1]."""
        precision = torch.float64 if has_float64(t.device) else torch.float32
        knots = self.knots.detach().to(t.device, precision)
        first, last = float(knots[0]), float(knots[-1])
        rounding = 8.0 * torch.finfo(t.dtype).eps * max(abs(first), abs(last))
        t = t.to(knots)
        inside = (t >= min(first, last) - rounding) & (t <= max(first, last) + rounding)
        if not bool(inside.all()):
            raise ValueError(
                f"Expected times between {first:g} and {last:g}, where the solve ran, but got "
                f"{float(t[~inside][0].detach()):g}."
            )
        sign = 1.0 if last > first else -1.0
        step = torch.searchsorted(sign * knots[1:-1], (sign * t.detach()).contiguous())
        knots = self.knots.to(knots)  # with their gradient
        return step, (t - knots[step]) / knots.diff()[step]

    def _coefficients(self) -> tuple[Tensor, ...]:
        """Of each part the polynomials in a step's own time, shape ``(N, B, P + 1, D)``."""
        if self._polynomials is None:
            pieces, start = [], 0
            # Kept for later readings, whatever this one is for.
            with torch.inference_mode(False), torch.enable_grad():
                lengths = self.knots.diff()
                for tableau, run in groupby(self.tableaus):
                    n = slice(start, start := start + len(list(run)))
                    pieces.append(_of_one(tableau, lengths[n], self.states[n], self.stages[n]))
                self._polynomials = tuple(map(_joined, zip(*pieces, strict=True)))
        return self._polynomials


def _of_one(
    tableau: Tableau | RosenbrockTableau,
    lengths: Tensor,
    states: Sequence[Any],
    stages: Sequence[Sequence[Any]],
) -> list[Tensor]:
    """Polynomials of steps of one method, part by part, from the states where they start."""
    columns = list(zip(*tableau.interpolant, strict=True))
    found = []
    for part in range(len(parts(states[0]))):
        y = torch.stack([parts(y)[part] for y in states])
        shape = (len(y), _batch_size(y[0]), -1)
        ks = [
            torch.stack([parts(k)[part] for k in column]).reshape(shape)
            for column in zip(*stages, strict=True)
        ]
        h = lengths.to(y.device, y.real.dtype)[:, None, None]
        # Not a matrix product, whose precision autocast and TF32 lower.
        powers = [h * combine(ks, weights) for weights in columns]
        found.append(torch.stack([y.reshape(shape), *powers], dim=2))
    return found


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Polynomials of several methods, with zeros for the powers that one lacks."""
    if len(pieces) == 1:
        return pieces[0]
    n_powers = max(p.shape[2] for p in pieces)
    return torch.cat([F.pad(p, (0, 0, 0, n_powers - p.shape[2])) for p in pieces])


def stiffness_rate(
    tableau: Tableau, h: float, stages: Sequence[Any], controlled: int | None
) -> Tensor:
    """The estimate of :meth:`Steps.stiffness_estimates` for one step of length ``h``."""
    weights = tuple(b - a for a, b in zip((*tableau.a[-2], 0.0), tableau.a[-1], strict=True))
    pairs = list(zip(*map(parts, stages), strict=True))[:controlled]
    rise = rms(torch.cat([(k[-1] - k[-2]).flatten() for k in pairs]))
    run = rms(torch.cat([combine(k[:-1], weights, h).flatten() for k in pairs]))
    return rise / torch.where(run > 0, run, torch.inf)


def _batch_size(y: Tensor) -> int:
    return len(y) if y.ndim else 1


def _evaluate(polynomials: Tensor, step: Tensor, theta: Tensor) -> Tensor:
    """Polynomials ``(N, B, P + 1, D)`` of the steps ``(B, T)`` at ``theta``: ``(B, T, D)``."""
    n_samples, n_powers, dim = polynomials.shape[1:]
    row = step * n_samples + torch.arange(n_samples, device=step.device)[:, None]
    # Rows, because the backward pass of index_select is faster than that of indexing.
    rows = polynomials.flatten(0, 1).index_select(0, row.flatten())
    powers = rows.view(*step.shape, n_powers, dim).unbind(2)
    y = powers[-1]
    for c in reversed(powers[:-1]):
        y = c + theta[..., None] * y
    return y
