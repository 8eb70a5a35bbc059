"""Continuous normalizing flows."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steer_lightning.horizon import SpanHorizon
from steer_lightning.nn.block import Block
from steer_lightning.nn.compiled import CompiledField
from steer_lightning.nn.flows.divergence import DivergenceField
from steer_lightning.nn.flows.flow import Flow, Transport, check_shape
from steer_lightning.nn.likelihood import standard_normal_log_prob
from steer_lightning.nn.trace import NOISES, TRACE_ESTIMATORS, Noise, TraceEstimator, trace_noise
from steer_lightning.solvers import AdaptiveSolver, Solution, Solver
from steer_lightning.utils.checks import check_choice, check_span
from steer_lightning.utils.problem import default_times, first_part


class CNF(Flow, Block):
    r"""A continuous normalizing flow between data and a standard normal base.

    .. math:: \log p(x) = \log p_\mathrm{base}(z)
        + \int \operatorname{tr} \frac{\partial f}{\partial y}\, dt

    along the solve from the data :math:`x` to the base :math:`z`.

    Args:
        vector_field: ``f(t, y)`` for states ``(B, *event_shape)``.
        event_shape: Shape of one sample.
        solver: Integrator; dopri5 at ``1e-5`` if not given.
        eval_solver: Integrator in eval mode, where autocast is off; ``solver`` if not given.
        t_span: ``(t0, t1)``; STEER moves ``t1``.
        data_at: The end of the span where the data sits: ``"t1"`` as in the paper's Eq. 8, or
            ``"t0"`` as in the public FFJORD and RNODE code.
        learn_t1: Make ``t1`` a parameter.
        t1_range: Smallest and largest value of a learned ``t1``.
        eval_end_time: Where the moved end of the span lies in eval mode, for densities and
            samples; ``t1`` if not given.
        trace_estimator: ``"exact"``, for few dimensions; or ``"hutchinson"``, with one random
            probe for a whole solve.
        noise: Distribution of Hutchinson's probes, ``"gaussian"`` or ``"rademacher"``.
        compile: Compile the field with its divergence; see
            :class:`~steer_lightning.nn.CompiledField`.

    Raises:
        ValueError: If ``data_at``, ``trace_estimator`` or ``noise`` is unknown or ``t_span`` is
            not a pair of different times, or the field is a ``CompiledField``.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019; Ghosh et al., *STEER*, NeurIPS 2020,
        arXiv:2006.10711, Eq. 8.

    Example:
        >>> from steer_lightning.nn import ConcatSquashField
        >>> flow = CNF(ConcatSquashField(2, (16,)), event_shape=(2,))
        >>> flow.log_prob(torch.zeros(4, 2)).shape, flow.sample(3).shape
        (torch.Size([4]), torch.Size([3, 2]))
    """

    horizon: SpanHorizon
    integrals_beside = True

    def __init__(
        self,
        vector_field: nn.Module,
        event_shape: Sequence[int],
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
        t_span: Sequence[float] = (0.0, 1.0),
        data_at: Literal["t0", "t1"] = "t1",
        learn_t1: bool = False,
        t1_range: Sequence[float] | None = None,
        eval_end_time: float | None = None,
        trace_estimator: TraceEstimator = "exact",
        noise: Noise = "gaussian",
        compile: bool = False,
    ) -> None:
        super().__init__(tuple(event_shape))
        check_choice("data_at", data_at, ("t0", "t1"))
        check_choice("trace_estimator", trace_estimator, TRACE_ESTIMATORS)
        check_choice("noise", noise, NOISES)
        check_span(t_span)
        if isinstance(vector_field, CompiledField):
            raise ValueError(
                "Expected the vector field itself, but got a CompiledField, which would hide its "
                "divergence and run uncompiled under it. Use compile=True."
            )
        horizon = SpanHorizon(t_span[0], t_span[1], learn_t1, t1_range, eval_end_time)
        self.set_up(vector_field, solver or AdaptiveSolver(), eval_solver, horizon)
        self.data_at = data_at
        self.trace_estimator = trace_estimator
        self.noise: Noise = noise
        self._compile = compile

    @property
    def base_time(self) -> float:
        return self.horizon.t0 if self.data_at == "t1" else self.horizon.default_end

    @property
    def data_time(self) -> float:
        return self.horizon.default_end if self.data_at == "t1" else self.horizon.t0

    def transport(
        self,
        x: Tensor,
        t: float | None = None,
        *,
        generator: torch.Generator | None = None,
        regularize: bool = False,
    ) -> Transport:
        """Carry points to the base from a nominal time ``t`` on, or from the data's end."""
        check_shape("points", x, self.event_shape)
        start = self.data_time if t is None else t
        integrals = [x.new_zeros(x.shape[0]) for _ in range(3 if regularize else 1)]
        if start == self.base_time:
            return Transport(x, *integrals)
        t_eval = default_times(x, start, self.base_time)
        zs, deltas, *energies = self._solve((x, *integrals), t_eval, generator)
        # The regularisers, of squares, are integrals over the length of time, whatever its way.
        return Transport(zs[-1], deltas[-1], *(energy[-1].abs() for energy in energies))

    def log_prob(
        self, x: Tensor, t: float | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-density at ``x`` in nats, ``(B,)``; at a time ``t`` of the transport if given."""
        return self.transport(x, t, generator=generator).log_p

    def inverse(self, z: Tensor) -> Tensor:
        check_shape("base points", z, self.event_shape)
        t_eval = default_times(z, self.base_time, self.data_time)
        solution = self._integrate(self.vector_field, z, t_eval)
        return solution.ys[-1]

    def trajectories(
        self, z: Tensor, t_eval: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Follow base points and their log-density through nominal times.

        Args:
            z: Base points, shape ``(B, *event_shape)``.
            t_eval: Times from the base's end of the span towards the data's, shape ``(T,)``.
            generator: Random stream of Hutchinson's noise; the global one if not given.

        Returns:
            States, shape ``(T, B, *event_shape)``, and their log-densities, shape ``(T, B)``.

        Raises:
            ValueError: If ``z`` has another shape, or ``t_eval`` does not start at the base.
        """
        check_shape("base points", z, self.event_shape)
        if not math.isclose(float(t_eval[0]), self.base_time, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(
                f"Expected `t_eval` to start where the base sits, at {self.base_time:g}, but got "
                f"{float(t_eval[0]):g}."
            )
        ys, deltas = self._solve((z, z.new_zeros(z.shape[0])), t_eval, generator)
        return ys, standard_normal_log_prob(z) - deltas

    def _integrate(self, field: nn.Module, state: Any, t_eval: Tensor) -> Solution:
        """Solve; in evaluation autocast does not lower the precision."""
        if self.training:
            return self.solve(field, state, t_eval)
        with torch.autocast(first_part(state).device.type, enabled=False):
            return self.solve(field, state, t_eval)

    def _solve(
        self, state: tuple[Tensor, ...], t_eval: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Solve for a state and the integrals beside it, one or three."""
        probe = None
        if self.trace_estimator == "hutchinson":
            probe = trace_noise(state[0], self.noise, generator)
        field: nn.Module = DivergenceField(self.vector_field, probe, regularize=len(state) > 2)
        if self._compile:
            field = CompiledField(field)
        solution = self._integrate(field, state, t_eval)
        return solution.ys
