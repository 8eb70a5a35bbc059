"""Rosenbrock methods: for stiff fields, without an iteration."""

from typing import Any, Literal

from steer_lightning.solvers.error_controlled import ErrorControlledSolver
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from steer_lightning.solvers.rosenbrock_step import RosenbrockMethod, check_dimension
from steer_lightning.solvers.stepping import Method
from steer_lightning.solvers.work import Work
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.problem import VectorField


class RosenbrockSolver(ErrorControlledSolver):
    r"""A linearly implicit method with an embedded error estimate, for stiff fields.

    Where a field pulls much faster than its solution moves, an explicit method's steps are as
    short as the pull is fast; those of an L-stable method are as long as the solution is smooth.
    Each step takes the field's Jacobian, of each sample by itself, and solves a linear system with
    it for each stage; there is no iteration that could fail.

    The Jacobian comes from automatic differentiation, by one call of the field. A field may bring
    its own, a method ``jacobian(t, y)`` that gives :math:`\partial f_i / \partial y_j`, shape
    ``(B, D, D)``; and say ``autonomous = True`` if it ignores time. It must treat the samples of a
    batch apart. Gradients are autograd's through the accepted steps and their linear solves, with
    the factors of the forward pass.

    Args:
        method: ``"rodas5p"`` (order 5), ``"rodas4"`` (order 4), or ``"rosenbrock23"`` (order 2,
            for loose tolerances).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit. Of a Jacobian the value of the field counts as one.
        first_step: Length of the first step to try, in units of time; ``"auto"`` finds one by
            one further evaluation; ``"previous"`` takes, in training, the one that the same block
            found good in the last batch.
        checkpoint: Keep only the ends of steps and repeat them in the backward pass, Jacobian and
            factorisation included: memory of one step instead of all. The gradient is the same but
            for rounding.
        max_dimension: Largest number of entries in the state of one sample; the work of a step
            grows with its cube.

    Raises:
        ValueError: If ``method`` is unknown, or a tolerance, ``max_nfe``, ``first_step`` or
            ``max_dimension`` is not positive.

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.7; Steinebach, *Construction of
        Rosenbrock-Wanner method Rodas5P*, 2023; Shampine and Reichelt, *The MATLAB ODE suite*,
        1997.

    Example:
        >>> import torch
        >>> solver = RosenbrockSolver(rtol=1e-6, atol=1e-6)
        >>> y0, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> solution = solver.solve(lambda t, y: 1e6 * (torch.cos(t) - y), y0, t)
        >>> round(solution.ys[-1].item(), 4), solution.stats.accepted < 30
        (0.5403, True)
    """

    def __init__(
        self,
        method: Literal["rodas5p", "rodas4", "rosenbrock23"] = "rodas5p",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int | None = 10_000,
        first_step: float | Literal["auto", "previous"] = "auto",
        checkpoint: bool = False,
        max_dimension: int = 256,
    ) -> None:
        check_choice("method", method, ROSENBROCK)
        super().__init__(rtol, atol, max_nfe, first_step)
        if max_dimension < 1:
            raise ValueError(f"Expected `max_dimension` >= 1, but got {max_dimension}.")
        self.method = method
        self.checkpoint = checkpoint
        self.max_dimension = max_dimension

    def _method(self, vector_field: VectorField, y0: Any, work: Work) -> Method:
        check_dimension(y0, self.max_dimension)
        return RosenbrockMethod(vector_field, ROSENBROCK[self.method], work, y0, self.checkpoint)
