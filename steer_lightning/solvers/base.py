"""The contract between vector fields, solvers and blocks."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from torch import Tensor

from steer_lightning.solvers.steps import Steps
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.problem import VectorField
from steer_lightning.utils.representation import Shown

Phase = Literal["forward", "backward"]
Counted = Literal["nfe", "accepted", "rejected", "jacobians", "factorizations"]


@dataclass
class SolveStats:
    """Work done by solves, in counts that only grow until ``reset``.

    Args:
        nfe_forward: Evaluations of the vector field in forward solves.
        nfe_backward: Evaluations in backward passes: the adjoint's, and those repeated by
            checkpointing. Backpropagation through a solver evaluates nothing again: zero.
        accepted: Steps taken in forward solves.
        rejected: Steps tried and thrown away in forward solves.
        accepted_backward: Steps taken in the adjoint's solves.
        rejected_backward: Steps thrown away in the adjoint's solves.
        jacobians: Jacobians of implicit methods in forward solves.
        jacobians_backward: Jacobians repeated by checkpointing.
        factorizations: Factorisations of their linear systems in forward solves: one for each
            step tried.
        factorizations_backward: Factorisations repeated by checkpointing.
        smallest_dt: Smallest step that an adaptive method has taken, in units of time; infinite
            where none has. Two counts are equal whatever it is.

    Example:
        >>> stats = SolveStats(nfe_forward=14, accepted=2)
        >>> stats.reset()
        >>> stats == SolveStats()
        True
    """

    nfe_forward: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    jacobians: int = 0
    jacobians_backward: int = 0
    factorizations: int = 0
    factorizations_backward: int = 0
    smallest_dt: float = field(default=math.inf, compare=False, repr=False)

    def reset(self) -> None:
        for count in fields(self):
            setattr(self, count.name, count.default)

    def count(self, what: Counted, n: int = 1) -> None:
        """Add to a count; inside a backward pass to that of its backward half."""
        backward = in_backward()
        if what == "nfe":
            name = "nfe_backward" if backward else "nfe_forward"
        else:
            name = f"{what}_backward" if backward else what
        setattr(self, name, getattr(self, name) + n)


class Solution(NamedTuple):
    """States and counts of a solve.

    Args:
        ys: State at each time of ``t_eval``, shape ``(T, *y0.shape)``; a tuple if ``y0`` was one.
        stats: The counts this solve was added to. The backward counts arrive with the backward
            pass.
        steps: The steps taken, if ``dense=True`` asked for them.
        next_step: Length of a good first step for a solve like this one; ``None`` if the solver
            does not choose its steps.
    """

    ys: Any
    stats: SolveStats
    steps: Steps | None = None
    next_step: float | None = None

    def at(self, t: Tensor) -> Any:
        """States at any times in between, after ``dense=True``; see :meth:`Steps.at`."""
        if self.steps is None:
            raise ValueError(
                "Expected a solve that kept its steps, but this one has none to be read between: "
                "ask for dense=True, of a solver that can, such as AdaptiveSolver."
            )
        return self.steps.at(t)


class Solver(Shown, ABC):
    """An integrator made from plain settings, with one method.

    ``remembers``: whether a block is to start each training solve with the step that the last one
    found good.
    """

    remembers = False

    @abstractmethod
    def solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
        dense: bool = False,
        first_step: float | None = None,
    ) -> Solution:
        r"""Integrate :math:`dy/dt = f(t, y)` from ``t_eval[0]`` through every time of ``t_eval``.

        A field with an attribute ``controlled_parts = n`` has a tuple for a state, of which the
        first ``n`` parts alone set an adaptive method's step size; the rest are integrals along
        the way. An implicit method asks one with a method ``jacobian(t, y)`` for its Jacobian.

        Args:
            vector_field: ``f(t, y)``, with ``t`` of shape ``()`` in the precision of the state,
                returning what ``y`` is like.
            y0: State at ``t_eval[0]``, a tensor or a tuple of tensors, batch along axis 0,
                float32, float64 or complex.
            t_eval: Strictly monotone times, shape ``(T,)`` with ``T >= 2``, float32 or float64,
                either direction. Float64 keeps the lengths of intervals exact far from zero.
            stats: Counts to add to; fresh ones if not given.
            dense: Keep the steps, so that the solution can be read at any time in between. No
                state that is returned changes by it.
            first_step: Length of the step to try first, in units of time; a solver that does
                not choose its steps ignores it.

        Returns:
            The states at ``t_eval`` and the counts.

        Raises:
            ValueError: If ``t_eval`` is not one-dimensional, too short or not monotone, the
                batch is empty, or the solver cannot be read between its steps.
            TypeError: If a dtype is not supported.
            SolverError: If the solve cannot be finished.
        """

    def solve_probed(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        probes: Tensor,
        *,
        dense: bool = False,
        **options: Any,
    ) -> tuple[Solution, Any]:
        """:meth:`solve`, and the states at further times, shape ``(P, *y0.shape)``.

        Those, ``probes`` of shape ``(P,)``, lie strictly inside the interval, in its order, and
        change no state of the solution. A solver that cannot be read between its steps raises a
        ``ValueError``.
        """
        solution = self.solve(vector_field, y0, t_eval, dense=True, **options)
        return solution, solution.at(probes)
