"""The contract between vector fields, solvers and whoever counts their work."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from steer_lightning.functional.autograd import backward_pass
from steer_lightning.solvers.errors import Error, NFEBudgetExceededError

VectorField = Callable[[Tensor, Any], Any]
Phase = Literal["forward", "backward"]


@dataclass
class SolveStats:
    """Work done by solves, in counts that only grow until :meth:`reset`.

    Args:
        nfe_forward: Evaluations of the vector field in forward solves.
        nfe_backward: Evaluations in backward passes: the adjoint's, and those repeated by
            checkpointing. Backpropagation through a solver evaluates nothing again: zero.
        accepted: Steps taken in forward solves.
        rejected: Steps tried and thrown away in forward solves.
        accepted_backward: Steps taken in the adjoint's solves.
        rejected_backward: Steps thrown away in the adjoint's solves.
        smallest_dt: Smallest step that an adaptive method has taken, in units of time; infinite
            where none has. Two counts are equal whatever it is.

    Example:
        >>> stats = SolveStats(nfe_forward=14, accepted=2)
        >>> stats.reset()
        >>> stats
        SolveStats(nfe_forward=0, nfe_backward=0, accepted=0, rejected=0, accepted_backward=0, \
rejected_backward=0)
    """

    nfe_forward: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    smallest_dt: float = field(default=math.inf, compare=False, repr=False)

    def reset(self) -> None:
        """Set every count to zero."""
        for count in fields(self):
            setattr(self, count.name, count.default)

    def count_evaluation(self, phase: Phase, n: int = 1) -> None:
        """Count ``n`` evaluations of the vector field."""
        name = f"nfe_{phase}"
        setattr(self, name, getattr(self, name) + n)

    def count_step(self, phase: Phase, *, accepted: bool) -> None:
        """Count one step."""
        name = ("accepted" if accepted else "rejected") + ("_backward" * (phase == "backward"))
        setattr(self, name, getattr(self, name) + 1)


class Solution(NamedTuple):
    """What a solve returns.

    Args:
        ys: State at each time of ``t_eval``, shape ``(T, *y0.shape)``; a tuple if ``y0`` was one.
        stats: The counts this solve was added to. The backward counts arrive with the backward
            pass.
    """

    ys: Any
    stats: SolveStats


class Solver(ABC):
    """An integrator made from plain settings, with one method."""

    @abstractmethod
    def solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None = None,
    ) -> Solution:
        r"""Integrate :math:`dy/dt = f(t, y)` from ``t_eval[0]`` through every time of ``t_eval``.

        A field with an attribute ``controlled_parts = n`` has a tuple for a state, of which the
        first ``n`` parts alone set an adaptive method's step size; the rest are integrals along
        the way.

        Args:
            vector_field: ``f(t, y)``, with ``t`` of shape ``()``, returning what ``y`` is like.
            y0: State at ``t_eval[0]``, a tensor or a tuple of tensors, batch along axis 0,
                float32 or float64.
            t_eval: Strictly monotone times, shape ``(T,)`` with ``T >= 2``, float32 or float64,
                either direction.
            stats: Counts to add to; fresh ones if not given.

        Returns:
            The states at ``t_eval`` and the counts.

        Raises:
            ValueError: If ``t_eval`` is not one-dimensional, too short or not monotone, or the
                batch is empty.
            TypeError: If a dtype is not supported.
            SolverError: If the solve cannot be finished.
        """


class CountedField:
    """A vector field that counts its calls, for one solve, and stops at a budget.

    It stays outside anything compiled: a counter inside a compiled module would be a guard on a
    number that always changes. Calls after the forward solve belong to a backward pass: the
    adjoint's, or a checkpoint's; the solver sets ``phase`` when it returns.

    Args:
        vector_field: ``f(t, y)``.
        stats: Counts to add to.
        max_nfe: Largest number of calls in the forward solve, and in each backward pass.
        tolerances: ``(rtol, atol)`` of the solve, for the message of an error.

    Attributes:
        dt: Step that was tried last; the solver keeps it here, for the message of an error.

    Raises:
        NFEBudgetExceededError: On the call that exceeds ``max_nfe``.
    """

    def __init__(
        self,
        vector_field: VectorField,
        stats: SolveStats,
        max_nfe: int | None = None,
        tolerances: tuple[float, float] | None = None,
    ) -> None:
        self.vector_field = vector_field
        self.stats = stats
        self.max_nfe = max_nfe
        self.tolerances = tolerances
        self.dt: float | None = None
        self.phase: Phase = "forward"
        self._spent = 0
        self._spent_in: tuple[Phase, int] = (self.phase, backward_pass())

    def __call__(self, t: Tensor, y: Any) -> Any:
        now = (self.phase, backward_pass())
        if now != self._spent_in:
            self._spent, self._spent_in = 0, now
        self._spent += 1
        if self.max_nfe is not None and self._spent > self.max_nfe:
            self._spent = self.max_nfe
            raise self.place(
                NFEBudgetExceededError(self.max_nfe, float(t.detach()), self.phase), y
            )
        self.stats.count_evaluation(self.phase)
        return self.vector_field(t, y)

    def place(self, error: Error, y: Any) -> Error:
        """Add to an error what is known of this solve, whose state is like ``y``."""
        rtol, atol = self.tolerances or (None, None)
        return error.with_context(
            dt=self.dt,
            nfe=self._spent,
            dtype=first_part(y).dtype,
            rtol=rtol,
            atol=atol,
            stats=self.stats,
        )


def first_part(y: Any) -> Tensor:
    """The state, or the first part of a state that is a tuple."""
    part = y[0] if isinstance(y, tuple) else y
    if not isinstance(part, Tensor):
        raise TypeError(
            f"Expected the state to be a tensor or a tuple of tensors, but got "
            f"{type(part).__name__}."
        )
    return part


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; some accelerators have float32 only."""
    return device.type not in {"mps"}


def default_times(y0: Any, *times: float) -> Tensor:
    """Times for the state ``y0``, on its device: float64 if the state is, else float32."""
    part = first_part(y0)
    dtype = torch.float64 if part.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.tensor(times, dtype=dtype, device=part.device)


def check_state(y0: Any) -> None:
    """Raise unless a state is float32, float64 or complex, and its batch not empty."""
    for part in y0 if isinstance(y0, tuple) else (first_part(y0),):
        if part.dtype in (torch.float16, torch.bfloat16) or not (
            part.is_floating_point() or part.is_complex()
        ):
            raise TypeError(
                f"Expected a state of float32 or float64, but got {part.dtype}: solvers add small "
                f"steps to large states, which half precision loses. Keep the state in float32 "
                f"and let autocast lower the precision of the network alone."
            )
        if part.numel() == 0:
            raise ValueError(
                f"Expected a batch of at least one sample, but got a state of shape "
                f"{tuple(part.shape)}."
            )


def check_problem(y0: Any, t_eval: Tensor) -> None:
    """Check initial state and times before anything is evaluated; see :meth:`Solver.solve`."""
    check_state(y0)
    if t_eval.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Expected `t_eval` to be float32 or float64, but got {t_eval.dtype}.")
    if t_eval.ndim != 1 or len(t_eval) < 2:
        raise ValueError(
            f"Expected `t_eval` of shape (T,) with T >= 2, but got shape {tuple(t_eval.shape)}."
        )
    gaps = t_eval.detach().diff()
    if not bool((gaps > 0).all() | (gaps < 0).all()):
        raise ValueError(
            f"Expected `t_eval` to be strictly increasing or strictly decreasing, but got "
            f"{t_eval.tolist()}. Sort the times and drop repeated ones."
        )


def check_is_module(vector_field: VectorField) -> nn.Module:
    """The field, if it is an ``nn.Module``.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(vector_field, nn.Module):
        raise TypeError(
            f"Expected the vector field to be an nn.Module for gradient='adjoint', which must "
            f"find its parameters, but got {type(vector_field).__name__}. Wrap it in an "
            f"nn.Module, or use gradient='autograd'."
        )
    return vector_field


def trainable_tensors(vector_field: VectorField) -> tuple[Tensor, ...]:
    """Every tensor that a field's output depends on and that wants a gradient.

    These are the parameters of an ``nn.Module`` and what its submodules list in a method
    ``trainable_tensors`` (a warp with a learnable end time, say).

    Raises:
        TypeError: If the field is not an ``nn.Module``, as its parameters cannot be found.
    """
    module = check_is_module(vector_field)
    found = [p for p in module.parameters() if p.requires_grad]
    for part in module.modules():
        extra = getattr(part, "trainable_tensors", None)
        found.extend(extra() if callable(extra) else ())
    return tuple(found)
