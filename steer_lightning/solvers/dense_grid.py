"""Runge-Kutta on equal steps, read anywhere by cubic interpolation."""

import torch
from torch import Tensor

from steer_lightning.solvers.base import SolveStats, VectorField
from steer_lightning.solvers.dense import DenseSolution
from steer_lightning.solvers.fixed_grid import FixedGridSolver


class DenseGridSolver:
    r"""The fixed grid in place of a :class:`~steer_lightning.solvers.DenseSolver`.

    ``n_steps`` equal steps of rk4 over the interval, and between them the cubic that has the
    states and slopes of both ends of a step: fourth order, without control of the error.
    Gradients are autograd's, in the state and the parameters.

    Args:
        n_steps: Steps over the whole interval.

    Raises:
        ValueError: If ``n_steps < 1``.

    References:
        Hairer, Norsett and Wanner, *Solving ODEs I*, Section II.6, for the interpolant.

    Example:
        >>> solver = DenseGridSolver(n_steps=8)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(2, 1), torch.tensor([0.0, 1.0]))
        >>> solution.at(torch.tensor([[0.5], [1.0]])).flatten()
        tensor([0.6065, 0.3679])
    """

    def __init__(self, n_steps: int = 32) -> None:
        if n_steps < 1:
            raise ValueError(f"Expected `n_steps` >= 1, but got {n_steps}.")
        self.n_steps = n_steps

    def __repr__(self) -> str:
        return f"DenseGridSolver(n_steps={self.n_steps})"

    def solve(
        self,
        vector_field: VectorField,
        y0: Tensor,
        t_span: Tensor,
        *,
        stats: SolveStats | None = None,
    ) -> DenseSolution:
        """Integrate; see :meth:`steer_lightning.solvers.DenseSolver.solve`."""
        fraction = torch.linspace(0.0, 1.0, self.n_steps + 1).to(t_span)
        knots = t_span[0] + (t_span[1] - t_span[0]) * fraction
        ys, stats = FixedGridSolver("rk4", n_steps=1).solve(vector_field, y0, knots, stats=stats)
        stats.count_evaluation("forward", len(knots))
        slopes = torch.stack([vector_field(t, y) for t, y in zip(knots, ys, strict=True)]).to(ys)
        dt = knots.diff().to(ys)[:, None, None]
        start, end = dt * slopes[:-1], dt * slopes[1:]
        rise = ys.diff(dim=0)
        cubic = [ys[:-1], start, 3.0 * rise - 2.0 * start - end, start + end - 2.0 * rise]
        return DenseSolution(knots, torch.stack([*cubic, torch.zeros_like(rise)], dim=2), stats)
