"""Steps of Rosenbrock methods."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from steer_lightning.solvers.jacobian import Layout, Linearization, kept_bytes, linearize
from steer_lightning.solvers.linear_systems import LinearSystems
from steer_lightning.solvers.rosenbrock_methods import RosenbrockTableau
from steer_lightning.solvers.runge_kutta import Time, advance, evaluate
from steer_lightning.solvers.stepping import Method
from steer_lightning.solvers.work import Work
from steer_lightning.utils.problem import VectorField, parts


class RosenbrockMethod(Method):
    """Takes Rosenbrock steps of a vector field.

    The Jacobian at a step's start is kept until the step is accepted; each try has one
    factorisation, which serves all its stages and their gradients.

    Args:
        vector_field: ``f(t, y)``.
        tableau: The method.
        work: Counts evaluations, Jacobians and factorisations, those repeated in a backward pass
            too.
        y0: Initial state, for its layout.
        checkpoint: Keep only what a step starts from, and repeat it in the backward pass.
    """

    tableau: RosenbrockTableau

    def __init__(
        self,
        vector_field: VectorField,
        tableau: RosenbrockTableau,
        work: Work,
        y0: Any,
        checkpoint: bool = False,
    ) -> None:
        self.vector_field = vector_field
        self.tableau = tableau
        self.error_order = tableau.error_order
        self.work = work
        self.layout = Layout(y0)
        self.checkpoint = checkpoint
        self._here: Linearization | None = None

    def slope(self, t: Time, y: Any) -> Any:
        """The field at the start, by its linearization there."""
        return self.layout.unpack(self._linearize(t, y).slope)

    def step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        """State at ``end``, and the stages."""
        if self.checkpoint and torch.is_grad_enabled():
            # What was found outside of the checkpoint would be kept outside of it.
            result: tuple[Any, list[Any]] = recompute_in_backward(
                self._whole_step, start, end, y, use_reentrant=False
            )
            return result
        return self._step(self._linearize(start, y), start, end, y)

    def accept(self, t: float, h: float, stages: list[Any]) -> Method:
        """Forget the Jacobian."""
        self._here = None
        return self

    def _linearize(self, t: Time, y: Any) -> Linearization:
        if self._here is None:
            self.work.spend(1, t)
            self.work.stats.count_jacobian(self.work.phase)
            self._here = linearize(self.vector_field, t, y, self.layout)
        return self._here

    def _whole_step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        self._here = None
        found = self._step(self._linearize(start, y), start, end, y)
        self._here = None
        return found

    def _step(self, here: Linearization, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        tableau, layout, h = self.tableau, self.layout, end - start
        self.work.spend(len(tableau.c) - 1, start)
        self.work.stats.count_factorization(self.work.phase)
        unit = torch.eye(layout.dimension, dtype=here.slope.dtype, device=here.slope.device)
        systems = LinearSystems(unit / tableau.gamma - h * here.jacobian)
        rows: list[Tensor] = []
        stages: list[Any] = []
        for c, d, a, coupling in zip(
            tableau.c, tableau.d, tableau.a, tableau.coupling, strict=True
        ):
            if rows:
                t = end if c == 1.0 else start + c * h
                slope = evaluate(self.vector_field, t, advance(y, h, a, stages))
                right = layout.pack(slope)
            else:
                right = here.slope
            right = advance(right, 1.0, coupling, rows)
            if here.drift is not None and d != 0.0:
                right = right + (h * d) * here.drift
            rows.append(systems.solve(right))
            stages.append(layout.unpack(rows[-1]))
        return advance(y, h, tableau.b, stages), stages


def check_dimension(y0: Any, max_dimension: int) -> None:
    """Refuse a state that no Jacobian can be kept of.

    Raises:
        TypeError: If the state is complex.
        ValueError: If a sample has more than ``max_dimension`` numbers.
    """
    if any(part.is_complex() for part in parts(y0)):
        raise TypeError(
            f"Expected a real state for an implicit method, which solves linear systems with the "
            f"Jacobian, but got {parts(y0)[0].dtype}. Give it real and imaginary parts, or use "
            f"AdaptiveSolver or FixedGridSolver."
        )
    layout = Layout(y0)
    if layout.dimension > max_dimension:
        size = kept_bytes(layout, parts(y0)[0].dtype)
        raise ValueError(
            f"Expected a state of at most max_dimension = {max_dimension} numbers a sample for an "
            f"implicit method, which solves a linear system of that size, but got "
            f"{layout.dimension}: for {layout.n_samples} samples each step would keep "
            f"{_in_words(size)} of Jacobians and factors. Use an explicit solver, AdaptiveSolver "
            f"or FixedGridSolver, or raise max_dimension."
        )


def _in_words(n_bytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024  # type: ignore[assignment]
    return f"{n_bytes:.3g} {unit}"
