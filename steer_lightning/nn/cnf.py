"""Continuous normalizing flows."""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

from steer_lightning.functional.choices import check_choice
from steer_lightning.functional.likelihood import standard_normal_log_prob
from steer_lightning.functional.trace import exact_divergence
from steer_lightning.horizon import SpanHorizon
from steer_lightning.nn.compiled import CompiledField
from steer_lightning.solvers import Solver, SolveStats, TorchdiffeqSolver
from steer_lightning.solvers.base import default_times

DATA_ENDS: Final = ("t0", "t1")


class DivergenceField(nn.Module):
    """The field of a state and its log-density: ``(f, tr df/dy)``.

    Args:
        vector_field: ``f(t, y)``. If it has a method ``value_and_divergence(t, y)``, that is
            used; else the divergence is taken by forward mode.
    """

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__()
        self.vector_field = vector_field

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of the state ``(B, D)`` and of the log-density ``(B,)``."""
        y, _ = state
        own = getattr(self.vector_field, "value_and_divergence", None)
        if own is None:
            return exact_divergence(self.vector_field, t, y)
        dy, divergence = own(t, y)
        return dy, divergence


class CNF(nn.Module):
    r"""A continuous normalizing flow between data and a standard normal base.

    .. math:: \log p(x) = \log p_\mathrm{base}(z)
        + \int \operatorname{tr} \frac{\partial f}{\partial y}\, dt

    along the solve from the data :math:`x` to the base :math:`z`.

    Args:
        vector_field: ``f(t, y)`` for states ``(B, *event_shape)``.
        event_shape: Shape of one sample.
        solver: Integrator; dopri5 at ``1e-5`` if not given.
        t_span: ``(t0, t1)``; STEER moves ``t1``.
        data_at: The end of the span where the data sits: ``"t1"`` as in the paper's Eq. 8, or
            ``"t0"`` as in the public FFJORD and RNODE code.
        learn_t1: Make ``t1`` a parameter.
        compile: Compile the field with its divergence; see
            :class:`~steer_lightning.nn.CompiledField`.

    Attributes:
        stats: Work done since its last reset; read by ``NFEMonitor``.

    Raises:
        ValueError: If ``data_at`` is unknown or ``t_span`` is not a pair of different times.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019; Ghosh et al., *STEER*, NeurIPS 2020,
        arXiv:2006.10711, Eq. 8.

    Example:
        >>> from steer_lightning.nn import ConcatSquashField
        >>> flow = CNF(ConcatSquashField(2, (16,)), event_shape=(2,))
        >>> flow.log_prob(torch.zeros(4, 2)).shape, flow.sample(3).shape
        (torch.Size([4]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        vector_field: nn.Module,
        event_shape: Sequence[int],
        solver: Solver | None = None,
        t_span: Sequence[float] = (0.0, 1.0),
        data_at: Literal["t0", "t1"] = "t1",
        learn_t1: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_choice("data_at", data_at, DATA_ENDS)
        if len(t_span) != 2:
            raise ValueError(f"Expected `t_span` = (t0, t1), but got {tuple(t_span)}.")
        self.event_shape = tuple(event_shape)
        self.vector_field = vector_field
        self.solver = TorchdiffeqSolver() if solver is None else solver
        self.horizon = SpanHorizon(t_span[0], t_span[1], learn_t1=learn_t1)
        self.data_at = data_at
        self.stats = SolveStats()
        self._compile = compile

    @property
    def base_time(self) -> float:
        """The end of the span where the base sits."""
        return self.horizon.t0 if self.data_at == "t1" else self.horizon.t1

    @property
    def data_time(self) -> float:
        """The end of the span where the data sits."""
        return self.horizon.t1 if self.data_at == "t1" else self.horizon.t0

    def forward(self, x: Tensor, t: float | None = None) -> tuple[Tensor, Tensor]:
        """Carry points to the base.

        Args:
            x: Points, shape ``(B, *event_shape)``.
            t: Nominal time where the points are; the data's end if not given.

        Returns:
            ``z``, shape of ``x``, and ``delta_log_p``, shape ``(B,)``, with
            ``log_p(x) = log_p(z) + delta_log_p``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        self._check_events(x)
        start = self.data_time if t is None else t
        if start == self.base_time:
            return x, x.new_zeros(len(x))
        zs, deltas = self._solve(x, x.new_zeros(len(x)), default_times(x, start, self.base_time))
        return zs[-1], deltas[-1]

    def log_prob(self, x: Tensor, t: float | None = None) -> Tensor:
        """Log-density at ``x`` in nats, ``(B,)``; at a time ``t`` of the transport if given."""
        z, delta_log_p = self.forward(x, t)
        return standard_normal_log_prob(z) + delta_log_p

    def inverse(self, z: Tensor) -> Tensor:
        """Carry base points to the data, shape ``(B, *event_shape)``."""
        self._check_events(z)
        t_eval = default_times(z, self.base_time, self.data_time)
        solution = self.horizon.solve(self.solver, self.vector_field, z, t_eval, stats=self.stats)
        x: Tensor = solution.ys[-1]
        return x

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples, shape ``(n, *event_shape)``.

        Args:
            n: Number of samples.
            generator: Random stream on the parameters' device; the global one if not given.
        """
        like = next(self.vector_field.parameters())
        z = torch.randn(
            n, *self.event_shape, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.inverse(z)

    def trajectories(self, z: Tensor, t_eval: Tensor) -> tuple[Tensor, Tensor]:
        """Follow base points and their log-density through nominal times.

        Args:
            z: Base points, shape ``(B, *event_shape)``.
            t_eval: Times from the base's end of the span towards the data's, shape ``(T,)``.

        Returns:
            States, shape ``(T, B, *event_shape)``, and their log-densities, shape ``(T, B)``.

        Raises:
            ValueError: If ``z`` has another shape, or ``t_eval`` does not start at the base.
        """
        self._check_events(z)
        if float(t_eval[0]) != self.base_time:
            raise ValueError(
                f"Expected `t_eval` to start where the base sits, at {self.base_time:g}, but got "
                f"{float(t_eval[0]):g}."
            )
        ys, deltas = self._solve(z, z.new_zeros(len(z)), t_eval)
        return ys, standard_normal_log_prob(z) - deltas

    def _solve(self, y: Tensor, log_p: Tensor, t_eval: Tensor) -> tuple[Tensor, Tensor]:
        field: nn.Module = DivergenceField(self.vector_field)
        if self._compile:
            field = CompiledField(field)
        solution = self.horizon.solve(self.solver, field, (y, log_p), t_eval, stats=self.stats)
        ys, log_ps = solution.ys
        return ys, log_ps

    def _check_events(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"Expected points of shape (B, {', '.join(map(str, self.event_shape))}), but got "
                f"{tuple(x.shape)}."
            )
