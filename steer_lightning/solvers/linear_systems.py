"""Linear systems, one a sample, that are factorised once and solved often, also for gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steer_lightning.utils.autograd import transforms_active


class LinearSystems:
    """Matrices ``(B, D, D)``, factorised by LU decomposition; numbers where D = 1.

    A gradient is one more solve, with the factors that are there already. Systems that cannot be
    solved give solutions that are not finite.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        if matrix.shape[-1] > 1:
            with torch.no_grad():  # not checked for singular ones: a GPU would be waited for
                self.lu, self.pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(self, right: Tensor) -> Tensor:
        """Solutions ``x`` of ``matrix @ x = right``, shape ``(B, D)``, as is ``right``."""
        if self.matrix.shape[-1] == 1:
            return right / self.matrix[..., 0]
        # Transforms, which no compilation enters, take a form that costs half as much again.
        compiling = torch.compiler.is_compiling()
        if not compiling and (transforms_active() or forward_ad._current_level >= 0):
            return torch.linalg.solve_ex(self.matrix, right[..., None])[0][..., 0]
        return _Solve.apply(self.matrix, self.lu, self.pivots, right, False)


class _Solve(torch.autograd.Function):
    """Solve with a matrix or its transpose; the gradient solves with the other one."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, lu: Tensor, pivots: Tensor, right: Tensor, transposed: bool
    ) -> Tensor:
        x: Tensor = torch.linalg.lu_solve(lu, pivots, right[..., None], adjoint=transposed)[..., 0]
        ctx.save_for_backward(matrix, lu, pivots, x)
        ctx.transposed = transposed
        return x

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        matrix, lu, pivots, x = ctx.saved_tensors
        adjoint: Tensor = _Solve.apply(matrix, lu, pivots, cotangent, not ctx.transposed)
        left, right = (x, adjoint) if ctx.transposed else (adjoint, x)
        of_matrix = -left[:, :, None] * right[:, None, :] if ctx.needs_input_grad[0] else None
        return of_matrix, None, None, adjoint, None
