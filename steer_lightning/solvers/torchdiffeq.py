"""torchdiffeq behind our contract: every method by name, counted, bounded, with typed errors."""

import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning.solvers.base import Solution, Solver, SolveStats
from steer_lightning.solvers.errors import (
    NonFiniteStateError,
    SolverError,
    StepSizeUnderflowError,
)
from steer_lightning.solvers.runge_kutta import evaluate
from steer_lightning.solvers.tf32 import warn_of_rounding
from steer_lightning.solvers.work import Work
from steer_lightning.solvers.wrapping import is_scaled, solve_enclosed
from steer_lightning.utils.checks import (
    check_choice,
    check_problem,
    check_tolerances,
    refuse_export,
)
from steer_lightning.utils.problem import (
    VectorField,
    as_held,
    first_part,
    has_float64,
    held_by,
    parts,
    trainable_tensors,
)

ADAPTIVE_METHODS: Final = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ADAMS_METHODS: Final = ("explicit_adams", "implicit_adams", "fixed_adams")
FIXED_METHODS: Final = ("euler", "midpoint", "heun2", "heun3", "rk4", *ADAMS_METHODS)
METHODS: Final = (*ADAPTIVE_METHODS, *FIXED_METHODS, "scipy_solver")
GRADIENTS: Final = ("autograd", "adjoint")
MANY_TIMES: Final = 8  # from which on the restarts of an adjoint cost more than its one solve


class TorchdiffeqSolver(Solver):
    r"""Solve with torchdiffeq.

    Args:
        method: Any of torchdiffeq's methods.
        rtol: Relative tolerance of an adaptive method.
        atol: Absolute tolerance of an adaptive method.
        gradient: ``"autograd"`` backpropagates through the solver: the exact gradient of what
            was computed, nothing is integrated again. ``"adjoint"`` integrates the adjoint
            equation backwards: memory independent of the number of steps.
        seminorm: Leave the adjoint's parameter states out of its error norm, which saves
            backward evaluations at equal accuracy of the gradient.
        max_nfe: Largest number of evaluations of the vector field in one solve, and in its
            adjoint; ``None`` for no limit.
        options: The method's own options, as torchdiffeq takes them.

    Raises:
        ValueError: If ``method`` or ``gradient`` is unknown, a tolerance or ``max_nfe`` is not
            positive, or ``seminorm`` is asked of ``gradient="autograd"``.

    References:
        Chen et al., *Neural Ordinary Differential Equations*, NeurIPS 2018, Appendix B; Kidger et
        al., *"Hey, that's not an ODE"*, ICML 2021, for the seminorm.

    Example:
        >>> solver = TorchdiffeqSolver(method="dopri5", rtol=1e-6, atol=1e-6)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))
        >>> round(solution.ys[-1].item(), 4), solution.stats.nfe_forward > 0
        (0.3679, True)
    """

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        gradient: Literal["autograd", "adjoint"] = "autograd",
        seminorm: bool = False,
        max_nfe: int | None = 10_000,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        check_choice("gradient", gradient, GRADIENTS)
        check_tolerances(rtol, atol, max_nfe)
        if seminorm and gradient != "adjoint":
            raise ValueError(
                "Expected gradient='adjoint' with seminorm=True, the adjoint's error norm, but "
                f"got gradient={gradient!r}."
            )
        if method == "scipy_solver" and gradient == "autograd":
            raise ValueError(
                "method='scipy_solver' leaves torch and cannot be backpropagated through: use "
                "gradient='adjoint'."
            )
        self.method = method
        self.rtol = rtol
        self.atol = atol
        self.gradient = gradient
        self.seminorm = seminorm
        self.max_nfe = max_nfe
        self.options = dict(options or {})

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
        """Integrate; see :meth:`Solver.solve`."""
        solve = self._solve
        if self.gradient == "adjoint" and is_scaled(first_part(y0).device):
            solve = partial(solve_enclosed, _raise, solve)
        return solve(vector_field, y0, t_eval, stats=stats, dense=dense)

    def _solve(
        self,
        vector_field: VectorField,
        y0: Any,
        t_eval: Tensor,
        *,
        stats: SolveStats | None,
        dense: bool,
    ) -> Solution:
        refuse_export(self)
        if dense:
            raise ValueError(
                "Expected a solver that can be read between its steps, but torchdiffeq returns "
                "the times asked for alone. Use AdaptiveSolver or FixedGridSolver."
            )
        check_problem(y0, t_eval)
        if len({part.dtype for part in parts(y0)}) > 1:
            raise TypeError(
                f"Expected parts of one dtype, as torchdiffeq makes them one, but got "
                f"{[part.dtype for part in parts(y0)]}. Use AdaptiveSolver, or cast them."
            )
        if self.method in ADAPTIVE_METHODS:
            warn_of_rounding(vector_field, y0, self.rtol)
        device = first_part(y0).device
        if self.method in ADAMS_METHODS and not has_float64(device):
            raise TypeError(
                f"Expected a device with float64 for method={self.method!r}, whose coefficients "
                f"torchdiffeq keeps in it, but got a state on {device}. Use 'rk4', or an adaptive "
                f"method."
            )
        if self.gradient == "adjoint" and len(t_eval) > MANY_TIMES:
            _warn_of_restarts(len(t_eval))
        t_eval = _on_device(t_eval, device)
        tolerances = (self.rtol, self.atol) if self.method not in FIXED_METHODS else None
        work = Work(y0, stats, self.max_nfe, tolerances)
        seen = vector_field
        if self.gradient == "adjoint":
            seen = as_held(held_by(vector_field), vector_field)
        counted = _counted(seen, work, self.method)
        settings: dict[str, Any] = {
            "rtol": self.rtol, "atol": self.atol, "method": self.method,
            "options": self._options(vector_field, y0),
        }  # fmt: skip
        if self.gradient == "autograd":
            ys = odeint(counted, y0, t_eval, **settings)
        else:
            if self.seminorm:
                settings["adjoint_options"] = {**settings["options"], "norm": "seminorm"}
            params = trainable_tensors(vector_field) if torch.is_grad_enabled() else ()
            is_complex = first_part(y0).is_complex()
            if is_complex and (t_eval.requires_grad or not all(p.is_complex() for p in params)):
                raise TypeError(
                    "Expected a real state for gradient='adjoint' with real parameters or with a "
                    "gradient in the times, which torchdiffeq gets wrong for a complex one. Use "
                    "gradient='autograd', or AdaptiveSolver."
                )
            ys = odeint_adjoint(counted, y0, t_eval, adjoint_params=params, **settings)
            for part in parts(ys):
                # Of the node: a gradient in the states themselves needs no adjoint.
                if part.grad_fn is not None:
                    part.grad_fn.register_prehook(_refuse_second_derivative)
        return Solution(ys, work.stats)

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
        """See :meth:`Solver.solve_probed`: an adaptive method is asked for further times."""
        if self.method not in ADAPTIVE_METHODS:
            raise ValueError(
                f"Expected a solver that can be read between its steps for a penalty, but "
                f"torchdiffeq's {self.method!r} would take other steps. Use AdaptiveSolver, "
                f"FixedGridSolver, or an adaptive method."
            )
        every, order = torch.cat([t_eval, probes.to(t_eval)]).sort(
            descending=bool(t_eval[-1] < t_eval[0]), stable=True
        )
        is_new = every.diff(prepend=every.new_tensor([torch.inf])) != 0  # a probe may be rounded
        solution = self.solve(vector_field, y0, every[is_new], dense=dense, **options)
        places = (is_new.cumsum(0) - 1)[order.argsort()]
        given, further = places.tensor_split([len(t_eval)])
        ys = solution.ys
        if not isinstance(ys, tuple):
            return solution._replace(ys=ys[given]), ys[further]
        return solution._replace(ys=tuple(y[given] for y in ys)), tuple(y[further] for y in ys)

    def _options(self, vector_field: VectorField, y0: Any) -> dict[str, Any]:
        """The user's options, before those that the field and the device ask for."""
        defaults: dict[str, Any] = {}
        if self.method in ADAPTIVE_METHODS:
            if not has_float64(first_part(y0).device):
                defaults["dtype"] = torch.float32
            controlled = getattr(vector_field, "controlled_parts", None)
            if controlled is not None and controlled < len(parts(y0)):
                defaults["norm"] = partial(_leading_norm, controlled)
        return {**defaults, **self.options}


def _refuse_second_derivative(gradients: Any) -> None:
    """Hook of an adjoint: gradients are on in a backward pass with ``create_graph=True`` alone."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "Expected a backward pass without create_graph=True: gradient='adjoint' has no second "
            "derivative, and a penalty on a gradient would do nothing. Use gradient='autograd', "
            "or AdaptiveSolver."
        )


def _on_device(t_eval: Tensor, device: torch.device) -> Tensor:
    """Times where torchdiffeq wants them."""
    if has_float64(device) or t_eval.dtype == torch.float32:
        return t_eval.to(device)
    rounded, gaps = t_eval.float(), t_eval.detach().cpu().double().diff()
    lost = (rounded.detach().cpu().double().diff() - gaps).abs() / gaps.abs()
    if bool((lost > 1e-5).any()):
        raise ValueError(
            f"Expected times whose intervals float32 holds to 1e-5, as {device} has no float64, "
            f"but got {t_eval.tolist()}. Measure time from the start of the solve, or use "
            f"AdaptiveSolver."
        )
    return rounded.to(device)


def _raise(error: SolverError) -> None:
    raise error


@cache
def _warn_of_restarts(n_times: int) -> None:
    """Once in a process for a number of times."""
    warnings.warn(
        f"gradient='adjoint' solves the adjoint anew between each two of {n_times} times: its "
        f"backward pass costs as many solves, where autograd needs none. Use AdaptiveSolver, "
        f"or ask for fewer times.",
        stacklevel=2,
    )


@dataclass
class _Counted:
    """A field whose calls are counted."""

    vector_field: VectorField
    work: Work

    def __call__(self, t: Tensor, y: Any) -> Any:
        self.work.spend(1, t)
        return evaluate(self.vector_field, t, y)

    def accept_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        stats = self.work.stats
        stats.count("accepted")
        if self.work.dt is not None:  # of an adaptive method
            stats.smallest_dt = min(stats.smallest_dt, abs(self.work.dt))


class _CountedByFixed(_Counted):
    """One that hears of every step of a fixed method, by names that torchdiffeq looks up."""

    callback_step = callback_step_adjoint = _Counted.accept_step


class _CountedByAdaptive(_Counted):
    """One that hears of every step of an adaptive method, tried, accepted and rejected."""

    def callback_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        """Raise what torchdiffeq would only assert: a finite state, and time that advances."""
        t, dt, phase = t.detach(), dt.detach(), self.work.phase
        finite = torch.stack([part.isfinite().all() for part in parts(y)]).all()
        # One wait for a GPU, for all that is asked about the step.
        answers = torch.stack([dt, finite.to(dt), (t + dt != t).to(dt)])
        self.work.dt, is_finite, advances = answers.tolist()
        if is_finite and advances:
            return
        # torchdiffeq turns a step size that is not finite into zero.
        if is_finite and self.work.dt != 0:
            raise self.work.place(StepSizeUnderflowError(self.work.dt, float(t), phase))
        raise self.work.place(NonFiniteStateError(float(t), phase))

    def callback_reject_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        self.work.stats.count("rejected")

    callback_step_adjoint = callback_step
    callback_accept_step = callback_accept_step_adjoint = _Counted.accept_step
    callback_reject_step_adjoint = callback_reject_step


def _counted(vector_field: VectorField, work: Work, method: str) -> _Counted:
    """A field as a method of torchdiffeq is given it, which warns of steps it would not tell."""
    if method in ADAPTIVE_METHODS:
        return _CountedByAdaptive(vector_field, work)
    return (_CountedByFixed if method in FIXED_METHODS else _Counted)(vector_field, work)


def _leading_norm(n: int, parts: tuple[Tensor, ...]) -> Tensor:
    """The largest root mean square of the first parts, as torchdiffeq has it of all."""
    # Not a maximum of tensors: its gradient of zero times the root's infinite one is NaN.
    return max(part.abs().square().mean().sqrt() for part in parts[:n])
