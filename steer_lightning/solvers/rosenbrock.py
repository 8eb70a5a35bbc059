"""Rosenbrock methods: for stiff fields, without an iteration."""

from typing import Any, Literal

import torch
from torch import Tensor

from steer_lightning.solvers.error_controlled import ErrorControlledSolver, Method
from steer_lightning.solvers.jacobian import Layout, Linearization, linearize
from steer_lightning.solvers.linear_systems import LinearSystems
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK, RosenbrockTableau
from steer_lightning.solvers.runge_kutta import Time, advance, evaluate, step_length
from steer_lightning.solvers.work import Stepper, Work
from steer_lightning.utils.autograd import saves_through_hooks
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.problem import VectorField, parts

MAX_DIMENSION = 256


class RosenbrockSolver(ErrorControlledSolver):
    r"""A linearly implicit method with an embedded error estimate, for stiff fields.

    Where a field pulls much faster than its solution moves, an explicit method's steps are as
    short as the pull is fast; those of an L-stable method are as long as the solution is smooth.
    Each step takes the field's Jacobian, of each sample by itself, and solves a linear system with
    it for each stage; there is no iteration that could fail.

    The Jacobian comes from automatic differentiation, by one call of the field. A field may bring
    its own, a method ``jacobian(t, y)`` that gives :math:`\partial f_i / \partial y_j`, shape
    ``(B, D, D)``; and say ``autonomous = True`` if it ignores time. It must treat the samples of a
    batch apart; a state of one sample has shape ``(1, D)``: ``(D,)`` is ``D`` samples. Gradients
    are autograd's through the accepted steps and their linear solves, with the factors of the
    forward pass.

    Args:
        method: ``"rodas5p"`` (order 5), ``"rodas4"`` (order 4), or ``"rosenbrock23"`` (order 2,
            for loose tolerances).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit. Of a Jacobian the value of the field counts as one.
        first_step: Length of the first step to try, in units of time; ``"auto"`` finds one by
            one further evaluation; ``"previous"`` takes, in training, the one that the same block
            found good in the last batch (with the callback
            :class:`~steer_lightning.callbacks.StepMemories` in a resumed run, too).
        checkpoint: Keep only the ends of steps and repeat them in the backward pass, Jacobian and
            factorisation included: memory of one step instead of all. The gradient is the same but
            for rounding.
        compile: Compile the step with :func:`torch.compile`, once for all blocks of one
            structure; see :class:`~steer_lightning.solvers.AdaptiveSolver`. It takes a minute the
            first time. Of some fields, as of those that slice their state, the Jacobian is
            compiled for each batch size. Under hooks on saved tensors, as in a checkpoint around
            the block, the step runs as it is.
        max_dimension: Largest number of entries in the state of one sample; the work of a step
            grows with its cube.

    Raises:
        ValueError: If ``method`` is unknown, a tolerance, ``max_nfe``, ``first_step`` or
            ``max_dimension`` is not positive, or both ``checkpoint`` and ``compile`` are set.

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
        compile: bool = False,
        max_dimension: int = MAX_DIMENSION,
    ) -> None:
        check_choice("method", method, ROSENBROCK)
        super().__init__(rtol, atol, max_nfe, first_step)
        if checkpoint and compile:
            raise ValueError(
                "Expected checkpoint=False with compile=True: the Jacobian of a compiled step "
                "cannot be taken under the hooks of a checkpoint."
            )
        if max_dimension < 1:
            raise ValueError(f"Expected `max_dimension` >= 1, but got {max_dimension}.")
        self.method = method
        self.checkpoint = checkpoint
        self.compile = compile
        self.max_dimension = max_dimension

    def _method(self, vector_field: VectorField, y0: Any, work: Work) -> Method:
        how = (self.checkpoint, self.compile, self.max_dimension)
        return RosenbrockMethod(vector_field, ROSENBROCK[self.method], work, y0, *how)


class RosenbrockMethod(Method):
    """Takes Rosenbrock steps of a vector field.

    The Jacobian at a step's start is kept until the step is accepted, but not with a checkpoint,
    which takes one each try. Each try has one factorisation, which serves all its stages and
    their gradients.

    Raises:
        TypeError: If the state is complex.
        ValueError: If a sample has more than ``max_dimension`` numbers.
    """

    tableau: RosenbrockTableau

    def __init__(
        self,
        vector_field: VectorField,
        tableau: RosenbrockTableau,
        work: Work,
        y0: Any,
        checkpoint: bool,
        compile: bool,
        max_dimension: int = MAX_DIMENSION,
    ) -> None:
        _check_dimension(y0, Layout(y0), max_dimension)
        self.tableau = tableau
        compile = compile and not (checkpoint or saves_through_hooks())
        self._stepper = RosenbrockStepper(vector_field, tableau, work, compile, checkpoint)
        self._here: Linearization | None = None

    def slope(self, t: Time, y: Any) -> Any:
        return Layout(y).unpack(self._linearize(t, y).slope)

    def step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        # What was found outside of a checkpoint would be kept outside of it.
        in_checkpoint = self._stepper.checkpoint and torch.is_grad_enabled()
        here = None if in_checkpoint else self._linearize(start, y)
        return self._stepper(start, end, y, here)

    def accept(self, t: float, h: float, stages: list[Any]) -> Method:
        self._here = None
        return self

    def _linearize(self, t: Time, y: Any) -> Linearization:
        if self._here is None:
            self._here = self._stepper.linearize(t, y)
        return self._here


def rosenbrock_step(
    vector_field: VectorField,
    start: Time,
    end: Time,
    y: Any,
    here: Linearization | None,
    tableau: RosenbrockTableau,
) -> tuple[Any, list[Any]]:
    """State at ``end``, on either side of ``start``, and the stages of the step there.

    ``here`` is the field at its start if it is known.
    """
    layout = Layout(y)
    h = step_length(start, end, y)
    here = linearize(vector_field, start, y) if here is None else here
    unit = torch.eye(layout.dimension, dtype=here.slope.dtype, device=here.slope.device)
    systems = LinearSystems(unit / tableau.gamma - h * here.jacobian)
    rows: list[Tensor] = []
    stages: list[Any] = []
    for c, d, a, coupling in zip(tableau.c, tableau.d, tableau.a, tableau.coupling, strict=True):
        if rows:
            t = end if c == 1.0 else start + c * h
            right = layout.pack(evaluate(vector_field, t, advance(y, h, a, stages)))
        else:
            right = here.slope
        right = advance(right, 1.0, coupling, rows)
        if here.drift is not None and d != 0.0:
            right = right + (h * d) * here.drift
        rows.append(systems.solve(right))
        stages.append(layout.unpack(rows[-1]))
    return advance(y, h, tableau.b, stages), stages


class RosenbrockStepper(Stepper):
    """Takes Rosenbrock steps, with their Jacobians and factorisations counted."""

    function = staticmethod(rosenbrock_step)

    def linearize(self, t: Time, y: Any) -> Linearization:
        """The field where a step starts."""
        self.work.spend(1, t)
        self.work.stats.count("jacobians")
        return self.run(linearize, (t,), y)

    def _step(self, start: Time, end: Time, y: Any, known: Any) -> tuple[Any, list[Any]]:
        self.work.stats.count("jacobians", int(known is None))
        self.work.stats.count("factorizations")
        return super()._step(start, end, y, known)


def _check_dimension(y0: Any, layout: Layout, max_dimension: int) -> None:
    """Refuse a state that no Jacobian can be kept of."""
    first = parts(y0)[0]
    if any(part.is_complex() for part in parts(y0)):
        raise TypeError(
            f"Expected a real state for an implicit method, which solves linear systems with the "
            f"Jacobian, but got {first.dtype}. Give it real and imaginary parts, or use "
            f"FixedGridSolver, or AdaptiveSolver without stiff='switch'."
        )
    lengths = [part.shape[0] if part.ndim else None for part in parts(y0)]
    if len({*lengths}) > 1:
        raise ValueError(
            f"Expected parts of a state with the same number of samples for an implicit method, "
            f"but got shapes {[tuple(part.shape) for part in parts(y0)]}. Use AdaptiveSolver "
            f"without stiff='switch', or FixedGridSolver."
        )
    if layout.dimension > max_dimension:
        # The matrices and their factors, which a step keeps for its gradient.
        size = 2.0 * layout.n_samples * layout.dimension**2 * first.element_size() / 2**20
        raise ValueError(
            f"Expected a state of at most max_dimension = {max_dimension} numbers a sample for an "
            f"implicit method, which solves a linear system of that size, but got "
            f"{layout.dimension}: for {layout.n_samples} samples each step would keep "
            f"{size:.3g} MiB of Jacobians and factors. Use FixedGridSolver or "
            f"AdaptiveSolver without stiff='switch', or raise max_dimension of RosenbrockSolver."
        )
