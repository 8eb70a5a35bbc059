"""Explicit Runge-Kutta with steps as long as the tolerances allow."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

from steer_lightning.solvers.error_controlled import ErrorControlledSolver, Method
from steer_lightning.solvers.rosenbrock import RosenbrockMethod
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from steer_lightning.solvers.runge_kutta import Time, evaluate
from steer_lightning.solvers.stiffness import StiffnessWatch
from steer_lightning.solvers.tableaus import ADAPTIVE
from steer_lightning.solvers.work import Stepper, Work
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.problem import VectorField


class AdaptiveSolver(ErrorControlledSolver):
    r"""Explicit Runge-Kutta with an embedded error estimate.

    The last step ends at the last time; other times are read from the interpolant and cost no
    evaluation. Gradients are autograd's through the accepted steps, with their lengths held
    constant: rejected steps leave nothing behind.

    Args:
        method: ``"dopri5"``, ``"tsit5"`` (both of order 5) or ``"bosh3"`` (order 3, for loose
            tolerances).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Largest number of evaluations of the vector field in one solve; ``None`` for no
            limit.
        first_step: Length of the first step to try, in units of time; ``"auto"`` finds one by
            one further evaluation; ``"previous"`` takes, in training, the one that the same block
            found good in the last batch (with the callback
            :class:`~steer_lightning.callbacks.StepMemories` in a resumed run, too); on a grid of
            times under STEER, whose solves begin elsewhere each time, it acts as ``"auto"``.
        checkpoint: Keep only the ends of steps and evaluate their stages again in the backward
            pass: the same gradient in the memory of one step, for one more forward pass. Times
            between the first and the last are read from the stages, which are kept for them.
        compile: Compile the step with :func:`torch.compile`, once for all blocks of one
            structure; that of ``stiff="switch"``, too, but not with a checkpoint. It needs a C++
            compiler, and minutes that pay after some thousand steps. In training every part of
            the state then has a gradient, and an error of the field is one of the compiler's.
        stiff: What to do where stability bounds the length of many steps, not accuracy: nothing,
            warn once, or go on with the implicit method rodas5p to the end of that solve; see
            :class:`~steer_lightning.solvers.RosenbrockSolver`, which takes a state ``(D,)`` for
            ``D`` samples. dopri5 and tsit5 notice.

    Raises:
        ValueError: If ``method`` or ``stiff`` is unknown, one does not go with the other, or a
            tolerance, ``max_nfe`` or ``first_step`` is not positive.

    References:
        Dormand and Prince, *A family of embedded Runge-Kutta formulae*, 1980; Tsitouras,
        *Runge-Kutta pairs of order 5(4)*, 2011; Bogacki and Shampine, *A 3(2) pair of Runge-Kutta
        formulas*, 1989.

    Example:
        >>> import torch
        >>> solver = AdaptiveSolver(rtol=1e-6, atol=1e-6)
        >>> solution = solver.solve(
        ...     lambda t, y: -y, torch.ones(2, 1), torch.tensor([0.0, 1.0]), dense=True
        ... )
        >>> solution.ys[-1].flatten()
        tensor([0.3679, 0.3679])
        >>> solution.at(torch.tensor([[0.5], [1.0]])).flatten()
        tensor([0.6065, 0.3679])
    """

    def __init__(
        self,
        method: Literal["dopri5", "tsit5", "bosh3"] = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int | None = 10_000,
        first_step: float | Literal["auto", "previous"] = "auto",
        checkpoint: bool = False,
        compile: bool = False,
        stiff: Literal["ignore", "warn", "switch"] = "ignore",
    ) -> None:
        check_choice("method", method, ADAPTIVE)
        check_choice("stiff", stiff, ("ignore", "warn", "switch"))
        if stiff != "ignore" and not ADAPTIVE[method].stable:
            noticing = sorted(name for name, tableau in ADAPTIVE.items() if tableau.stable)
            raise ValueError(
                f"Expected a method among {noticing} with stiff={stiff!r}, which estimate "
                f"the stiffness of a field, but got {method!r}."
            )
        super().__init__(rtol, atol, max_nfe, first_step)
        self.method = method
        self.checkpoint = checkpoint
        self.compile = compile
        self.stiff = stiff
        self._warned = False

    def _method(self, vector_field: VectorField, y0: Any, work: Work) -> Method:
        tableau = ADAPTIVE[self.method]
        stepper = Stepper(vector_field, tableau, work, self.compile, checkpoint=self.checkpoint)
        if self.stiff == "ignore" or (self.stiff == "warn" and self._warned):
            return _ExplicitMethod(stepper)
        controlled = getattr(vector_field, "controlled_parts", None)
        watch = StiffnessWatch(tableau, controlled, max(self.rtol, self.atol))
        if self.stiff == "warn":
            return _ExplicitMethod(stepper, watch, self._warn)
        rodas5p = ROSENBROCK["rodas5p"]
        implicit = RosenbrockMethod(vector_field, rodas5p, work, y0, self.checkpoint, self.compile)
        return _ExplicitMethod(stepper, watch, lambda *_: implicit)

    def _warn(self, t: float, h: float, rate: float) -> None:
        self._warned = True
        warnings.warn(
            f"Expected a field that is not stiff for {self.method}, but near t = {t:.6g} the "
            f"steps of {abs(h):.3g} are as short as its fastest rate of change, about {rate:.3g}, "
            f"asks for, not as the tolerances do. Use RosenbrockSolver, or "
            f"AdaptiveSolver(stiff='switch'), which hands over to it. This is said once for each "
            f"solver.",
            stacklevel=2,
        )


class _ExplicitMethod(Method):
    """Takes explicit Runge-Kutta steps, the last stage of which is the first of the next one.

    Args:
        stepper: Takes the steps.
        watch: Tells whether the field is stiff, if somebody wants to know.
        on_stiff: Called then, once, with the time, the step and the field's rate; gives the
            method that goes on, or ``None``.
    """

    def __init__(
        self,
        stepper: Stepper,
        watch: StiffnessWatch | None = None,
        on_stiff: Callable[[float, float, float], Method | None] = lambda *_: None,
    ) -> None:
        self.tableau = stepper.tableau
        self._stepper = stepper
        self._watch = watch
        self._on_stiff = on_stiff
        self._slope: Any = None

    def slope(self, t: Time, y: Any) -> Any:
        self._stepper.work.spend(1, t)
        self._slope = evaluate(self._stepper.vector_field, t, y)
        return self._slope

    def step(self, start: Time, end: Time, y: Any) -> tuple[Any, list[Any]]:
        return self._stepper(start, end, y, self._slope)

    def accept(self, t: float, h: float, stages: list[Any]) -> Method:
        self._slope = stages[-1]
        if self._watch is None or not self._watch.is_stiff(h, stages):
            return self
        rate, self._watch = self._watch.rate, None
        return self._on_stiff(t, h, rate) or self
