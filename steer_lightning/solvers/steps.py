"""The accepted steps of a solve: states between them, and what they tell of the field."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import combine, error_ratio, rms
from steer_lightning.solvers.tableaus import Tableau
from steer_lightning.utils.problem import has_float64, parts


class Steps:
    """The steps of a Runge-Kutta or Rosenbrock solve, with their stages.

    All that is computed here carries gradients in states and stages; lengths of steps are
    constants.

    Args:
        tableau: The method, with an interpolant.
        knots: Ends of the ``N`` steps, shape ``(N + 1,)``, in the direction of the solve.
        states: State at each of them.
        stages: Stages of each step.
        tolerances: ``(rtol, atol)`` of an adaptive solve.
        controlled: Leading parts that set the step size; all if ``None``.
    """

    def __init__(
        self,
        tableau: Tableau | RosenbrockTableau,
        knots: Tensor,
        states: Sequence[Any],
        stages: Sequence[Sequence[Any]],
        tolerances: tuple[float, float] | None = None,
        controlled: int | None = None,
    ) -> None:
        self.tableau = tableau
        self.knots = knots
        self.states = list(states)
        self.stages = list(stages)
        self.tolerances = tolerances
        self.controlled = controlled
        self._polynomials: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def lengths(self) -> list[float]:
        """Length of each step, negative in a solve back in time."""
        lengths: list[float] = self.knots.detach().diff().tolist()
        return lengths

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
        step, theta = self._locate(t if t.ndim == 2 else t.expand(n_samples, -1))
        found = []
        for part, polynomials in zip(parts(state), self._coefficients(), strict=True):
            y = _evaluate(polynomials, step, theta.to(part.real.dtype))
            if t.ndim == 1:
                found.append(y.transpose(0, 1).reshape(len(t), *part.shape))
            else:
                found.append(y.reshape(*t.shape, *part.shape[1:]))
        return tuple(found) if isinstance(state, tuple) else found[0]

    def error_estimates(self) -> Tensor:
        """Error of each step in units of the tolerance, shape ``(N,)``; at most one.

        See ``error_ratio`` in ``solvers/runge_kutta.py`` for the formula.

        Raises:
            ValueError: If the method has no embedded estimate.

        References:
            Pal et al., *Opening the blackbox*, ICML 2021, which penalises it.
        """
        if self.tableau.error is None or self.tolerances is None:
            raise ValueError(
                "Expected an adaptive method, which estimates the error of its steps."
            )
        ratios = [
            error_ratio(y, y_next, ks, h, self.tableau.error, self.tolerances, self.controlled)
            for y, y_next, ks, h in zip(
                self.states, self.states[1:], self.stages, self.lengths, strict=False
            )
        ]
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
        if not isinstance(self.tableau, Tableau):
            raise ValueError(
                "Expected an explicit method: a Rosenbrock method's stages are no slopes."
            )
        *_, before, last = self.tableau.c
        if not before == last == 1.0:
            raise ValueError(
                "Expected a method that evaluates the end of a step twice, as dopri5 and tsit5 do."
            )
        rates = [
            stiffness_rate(self.tableau, h, ks, self.controlled)
            for ks, h in zip(self.stages, self.lengths, strict=True)
        ]
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
            assert self.tableau.interpolant is not None
            columns = list(zip(*self.tableau.interpolant, strict=True))
            starts = zip(*map(parts, self.states[:-1]), strict=True)
            stages = [zip(*map(parts, ks), strict=True) for ks in zip(*self.stages, strict=True)]
            by_part = zip(*stages, strict=True)
            self._polynomials = tuple(
                self._polynomial(torch.stack(ys), [torch.stack(k) for k in ks], columns)
                for ys, ks in zip(starts, by_part, strict=True)
            )
        return self._polynomials

    def _polynomial(
        self, y: Tensor, stages: list[Tensor], columns: list[tuple[float, ...]]
    ) -> Tensor:
        shape = (len(y), _batch_size(y[0]), -1)
        y, stages = y.reshape(shape), [k.reshape(shape) for k in stages]
        h = self.knots.diff().to(y.device, y.real.dtype)[:, None, None]
        # Not a matrix product, whose precision autocast and TF32 lower.
        powers = [h * combine(stages, weights) for weights in columns]
        return torch.stack([y, *powers], dim=2)


class JoinedSteps(Steps):
    """The steps of several methods, one after another.

    Args:
        pieces: Steps of each, in the direction of the solve.
    """

    def __init__(self, pieces: Sequence[Steps]) -> None:
        super().__init__(
            pieces[0].tableau,
            torch.cat([pieces[0].knots, *(piece.knots[1:] for piece in pieces[1:])]),
            [*pieces[0].states, *(y for piece in pieces[1:] for y in piece.states[1:])],
            [ks for piece in pieces for ks in piece.stages],
            pieces[0].tolerances,
            pieces[0].controlled,
        )
        self.pieces = list(pieces)

    def error_estimates(self) -> Tensor:
        """Error of each step in units of the tolerance; see :meth:`Steps.error_estimates`."""
        return torch.cat([piece.error_estimates() for piece in self.pieces])

    def stiffness_estimates(self) -> Tensor:
        """Estimates of each step, if all methods have them; see :class:`Steps`."""
        return torch.cat([piece.stiffness_estimates() for piece in self.pieces])

    def _coefficients(self) -> tuple[Tensor, ...]:
        """Of each part the polynomials of all pieces, with zeros for the powers that one lacks."""
        if self._polynomials is None:
            by_part = zip(*(piece._coefficients() for piece in self.pieces), strict=True)
            self._polynomials = tuple(_of_one_degree(pieces) for pieces in by_part)
        return self._polynomials


def stiffness_rate(
    tableau: Tableau, h: float, stages: Sequence[Any], controlled: int | None
) -> Tensor:
    """The estimate of :meth:`Steps.stiffness_estimates` for one step of length ``h``."""
    weights = tuple(b - a for a, b in zip((*tableau.a[-2], 0.0), tableau.a[-1], strict=True))
    pairs = list(zip(*map(parts, stages), strict=True))[:controlled]
    rise = rms(torch.cat([(k[-1] - k[-2]).flatten() for k in pairs]))
    run = rms(torch.cat([combine(k[:-1], weights, h).flatten() for k in pairs]))
    return rise / torch.where(run > 0, run, torch.inf)


def _of_one_degree(polynomials: Sequence[Tensor]) -> Tensor:
    n_powers = max(p.shape[2] for p in polynomials)
    return torch.cat([F.pad(p, (0, 0, 0, n_powers - p.shape[2])) for p in polynomials])


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
