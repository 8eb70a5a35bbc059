"""The block that turns a vector field into a layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from steer_lightning.horizon import Horizon, SpanHorizon, WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn.block import Block
from steer_lightning.solvers import AdaptiveSolver, Solver
from steer_lightning.utils.checks import check_span
from steer_lightning.utils.problem import default_times, last_of


class ODEBlock(Block):
    r"""Map a state to the solution of an ODE that starts there.

    .. math:: y(t_1) = y_0 + \int_{t_0}^{t_1} f(t, y(t))\, dt

    Args:
        vector_field: ``f(t, y)``, returning the shape of ``y``.
        solver: Integrator; dopri5 at ``1e-5`` if not given.
        t_span: ``(t0, t1)`` of the block's horizon.
        horizon: A horizon in place of ``t_span``: a :class:`~steer_lightning.horizon.GridHorizon`
            for solutions at many times.
        eval_solver: Integrator in eval mode; ``solver`` if not given. A model can train on a
            fixed compiled grid and be evaluated to a tolerance, or the reverse.
        learn_t1: Make ``t1`` a parameter.
        t1_range: Smallest and largest value of a learned ``t1``.
        eval_end_time: End of the solves in eval mode that are given no times; ``t1`` if not
            given. An earlier one makes inference cheaper.

    Raises:
        ValueError: If both ``horizon`` and what describes another are given; see
            :class:`~steer_lightning.horizon.SpanHorizon` for the rest.

    References:
        Chen et al., *Neural Ordinary Differential Equations*, NeurIPS 2018.

    Example:
        >>> import torch
        >>> from steer_lightning.nn import MLPField
        >>> block = ODEBlock(MLPField(2, (16,)))
        >>> block(torch.zeros(4, 2)).shape
        torch.Size([4, 2])
        >>> block(torch.zeros(4, 2), torch.tensor([0.0, 0.5, 1.0])).shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        vector_field: nn.Module,
        solver: Solver | None = None,
        t_span: Sequence[float] | None = None,
        horizon: Horizon | None = None,
        eval_solver: Solver | None = None,
        learn_t1: bool = False,
        t1_range: Sequence[float] | None = None,
        eval_end_time: float | None = None,
    ) -> None:
        super().__init__()
        own = {"t_span": t_span, "t1_range": t1_range, "eval_end_time": eval_end_time}
        own["learn_t1"] = learn_t1 or None
        both = [f"`{name}`" for name, given in own.items() if given is not None]
        if horizon is not None and both:
            raise ValueError(
                f"Expected no {' and '.join(both)} beside `horizon`, "
                f"which has its own. Give it to the SpanHorizon; a GridHorizon has none."
            )
        if horizon is None:
            t_span = (0.0, 1.0) if t_span is None else t_span
            check_span(t_span)
            horizon = SpanHorizon(t_span[0], t_span[1], learn_t1, t1_range, eval_end_time)
        self.set_up(vector_field, solver or AdaptiveSolver(), eval_solver, horizon)

    def forward(
        self,
        y0: Any,
        t_eval: Tensor | None = None,
        *,
        t_start: Tensor | None = None,
        t_end: Tensor | None = None,
    ) -> Any:
        """Solve from ``y0``.

        Args:
            y0: State at the first time, shape ``(B, ...)``, or a tuple of such.
            t_eval: Nominal times, shape ``(T,)``; the ends of the span if not given.
            t_start: Actual time of each sample at ``t0``, shape ``(B,)``, for samples that run
                through intervals of their own; ``t0`` if not given; spans only.
            t_end: Actual time of each sample at ``t1``, shape ``(B,)``, where it ends in
                evaluation too, whatever ``eval_end_time`` is; the start and the length of the
                span if not given.

        Returns:
            The state at ``t1``, or with ``t_eval`` those at all its times, ``(T, B, ...)``.
        """
        times = self.horizon.times(y0) if t_eval is None else t_eval
        field: Any = self.vector_field
        if t_start is not None or t_end is not None:
            if not isinstance(self.horizon, SpanHorizon):
                raise ValueError(
                    "Expected no `t_start` or `t_end` with a GridHorizon, whose times are actual."
                )
            if t_end is not None and self.horizon.learned_t1 is not None:
                raise ValueError(
                    "Expected no `t_end` with a learned `t1`, which would move it. Leave one of "
                    "them out."
                )
            t0, t1 = self.horizon.t0, self.horizon.t1
            start = t0 if t_start is None else t_start
            rate = 1.0 if t_end is None else (t_end - start) / (t1 - t0)
            if t_eval is None and t_end is not None:
                times = default_times(y0, t0, t1)
            if isinstance(start, Tensor):  # an adjoint differentiates start and rate apart
                start = start.clone()
            field = WarpedField(field, TimeWarp(t0, start, rate))
        ys = self.solve(field, y0, times).ys
        return last_of(ys) if t_eval is None else ys
