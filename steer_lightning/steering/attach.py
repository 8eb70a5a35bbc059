"""STEER for somebody else's model: forward hooks on the module that it passes to ``odeint``."""

import threading
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from steer_lightning.horizon.base import Movable
from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.solvers.foreign import ForeignSolve, solve_in_progress, watch_solves
from steer_lightning.utils.autograd import running_node

Span = tuple[float, float]


def time_given(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The time in a call of a vector field: its ``t``, or the first argument, or ``None``."""
    return named.get("t", arguments[0] if arguments else None)


class AttachedHorizon(Movable):
    r"""The horizon of a vector field that somebody else's code solves.

    A pre-hook maps the time that ``f(t, y, ...)`` receives, a post-hook scales what it returns:
    the solver, its tolerances and its options stay as they are. Without a draw in force both
    hooks pass everything through untouched. The hooks must outlive the backward pass: an adjoint
    evaluates the field there, and gets the end time of its forward pass.

    Args:
        field: The module passed to ``odeint``; called as ``f(t, y, ...)``, or with ``t=...``.
        path: Its name, for messages.
        span: Fixed and moved end of what the model solves; taken from the first of torchdiffeq's
            solves under a draw if not given.
        around: The modules that contain the field, by name: none of them may be solved itself.
    """

    def __init__(
        self,
        field: nn.Module,
        path: str,
        span: Span | None = None,
        around: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.asked = span
        self.span = span
        self._inside = self._outside = False  # of any solve that is seen
        self._said: set[str] = set()  # warnings
        self._reached: set[float] | None = set()  # times in the first batch, outside
        self._solve: ReferenceType[ForeignSolve] | None = None  # the last one that was checked
        self._thread = 0  # of the last forward pass
        self._warp: tuple[Draw, TimeWarp | None] | None = None
        # Modules around the field that run now; those that got a time, and in which solve.
        self._callers: list[tuple[str, ForeignSolve | None] | None] = []
        # Methods and no closures, so that a model with hooks can be pickled.
        self._handles = [
            field.register_forward_pre_hook(self._map_time, with_kwargs=True),
            field.register_forward_hook(self._scale_derivative),
        ]
        for name, module in (around or {}).items():
            enter = partial(self._enter_around, name)
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(self._leave_around, always_call=True),
            ]
        watch_solves()

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def attached(self) -> bool:
        """Whether the hooks are still on."""
        return bool(self._handles)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_solve": None, "_callers": []}

    def perturb(self, draw: Draw, root: nn.Module | None = None) -> None:
        super().perturb(draw, root)
        if self.span is not None:
            self._warp_of(draw)

    def check(self, draw: Draw) -> None:
        if draw.per_sample:
            raise ValueError(
                f"Expected scope='batch' or 'rank' for the attached vector field {self.path!r}, "
                f"but got 'sample': a foreign field takes one time for the whole batch. Use "
                f"steer_lightning.nn.ODEBlock for one end time per sample."
            )
        if self.span is not None:
            draw.offsets(self._gap(), None, clip=False)

    def describe(self) -> str:
        return "that of the first solve" if self.span is None else f"[{self._ends()}]"

    def in_force(self) -> dict[str, float]:
        """The end time in force; NaN while the span is not known."""
        nominal = float("nan") if self.span is None else self.span[1]
        return {"end_time": nominal if self.drawn is None else self.drawn}

    def actual(self, t: Tensor) -> Tensor:
        """What the field gets for times of the solve at hand."""
        warp = self._warp_in_force()
        return t if warp is None else warp.actual(t)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _map_time(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Pre-hook: replaces the time that a foreign solver passes."""
        draw, node = self.current_draw(), running_node()
        if node is None:
            self._thread = threading.get_ident()
        elif node.name == "CheckpointFunctionBackward" and (
            draw != self.draw or threading.get_ident() != self._thread
        ):
            raise RuntimeError(
                f"A re-entrant checkpoint repeats a solve of the vector field {self.path!r} whose "
                f"end time is no longer in force: an adjoint in it would get another. Give "
                f"checkpoint(..., use_reentrant=False), or, on a CPU, call backward before the "
                f"end of the training step (or inside `with steer(...)`)."
            )
        if draw is None:
            return args, kwargs
        t = time_given(args, kwargs)
        if not isinstance(t, Tensor):
            got = "no time" if t is None else f"a time of type {type(t).__name__}"
            raise TypeError(
                f"Expected the vector field {self.path!r} to be called as f(t, y, ...) with a "
                f"tensor t, but got {got}. Name the module that is passed to odeint."
            )
        if node is None:
            self._watch(t, module)
        warp = self._warp_of(draw)
        t = t if warp is None else warp.actual(t)
        return (args, {**kwargs, "t": t}) if "t" in kwargs else ((t, *args[1:]), kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _scale_derivative(self, module: nn.Module, args: Any, dy: Any) -> Any:
        """Post-hook: turns what the field returns into a derivative in nominal time."""
        warp = self._warp_in_force()
        return dy if warp is None else warp.scale(dy)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _enter_around(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of a module around the field: notes whether it got a time, to be solved."""
        t = time_given(args, kwargs)
        is_time = isinstance(t, Tensor) and t.ndim == 0 and t.is_floating_point()
        self._callers.append((name, solve_in_progress()) if is_time else None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _leave_around(self, module: nn.Module, args: Any, output: Any) -> None:
        self._callers.pop()

    def warn_of_doubts(self) -> None:
        """Say once what a batch has shown that is probably not meant."""
        if self._inside and self._outside:
            self._warn(
                f"The vector field {self.path!r} was evaluated outside of any solve of "
                f"torchdiffeq, and got the moved time and the scaled derivative there as well. "
                f"If that was not another library's solve, evaluate it inside "
                f"`with steer_lightning.nominal(field): ...`."
            )
        if self.span is not None and self._reached:
            t0, t1 = self.span
            reach = max(abs(t - t0) for t in self._reached) / abs(t1 - t0)
            if reach > 2.0 or (reach < 0.5 and len(self._reached) > 1):
                self._warn(
                    f"The vector field {self.path!r} was evaluated up to {reach:.3g} of the "
                    f"length of its span [{self._ends()}] from t0: probably the model solves "
                    f"another one. Give the span that it solves: t0=..., t1=..."
                )
        self._reached = None

    def _warn(self, message: str) -> None:
        """Warn once."""
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=3)

    def _watch(self, t: Tensor, field: nn.Module) -> None:
        """Learn and check the span from the solve that this evaluation belongs to."""
        solve = solve_in_progress()
        for caller in filter(None, self._callers):
            name, inside = caller
            called = (
                f"{self.path!r} is called by {name or 'the model'!r}, which gets a time itself"
            )
            if solve is None:
                self._warn(
                    f"The vector field {called}, or some other number. If that is what a solver "
                    f"calls, its own time is not moved: name it, vector_fields=[{name!r}]."
                )
            elif inside is solve:  # else it gets an end time, and solves the field itself
                raise ValueError(
                    f"Expected the module that is passed to odeint, but {called} and would see it "
                    f"unmoved. Name it: vector_fields=[{name!r}]."
                )
        # In a solve each sample may have its own time; a state of zeros looks like one at first.
        if _differ(t):
            if t.ndim > 1 or solve is None:
                raise ValueError(
                    f"Expected the vector field {self.path!r} to be called as f(t, y, ...), or "
                    f"with t=..., and one time, but got a tensor of shape {tuple(t.shape)}. Name "
                    f"the module that is passed to odeint."
                )
            self._warn(
                f"The vector field {self.path!r} got {len(t)} different times at once. If that is "
                f"a state, it is moved as a time would be: name the module that is passed to "
                f"odeint."
            )
        if solve is None:
            self._watch_unseen(t)
            return
        if solve.times is None:
            raise ValueError(
                f"Expected a solve of the vector field {self.path!r} that ends at a time, but got "
                f"one that ends at an event: there is no end time to draw. Solve it inside `with "
                f"steer_lightning.nominal(field): ...`."
            )
        self._inside = True
        if not solve.is_of(field):
            self._warn(
                f"odeint got a {type(solve.func).__name__} around the vector field {self.path!r}. "
                f"What that does with the time itself, such as to read a control, is not moved, "
                f"and what it does with the derivative is not scaled. If it does either, make it "
                f"a module of the model and name that."
            )
        if self._solve is not None and self._solve() is solve:
            return
        self._solve = ref(solve)  # weak, as it holds the field
        first, last = (float(time.detach()) for time in (solve.times[0], solve.times[-1]))
        near = 1e-5 * abs(last - first) + max(1e-6, torch.finfo(t.dtype).eps) * abs(first)
        if not bool(((t.detach() - first).abs() <= near).all()):
            raise ValueError(
                f"Expected the vector field {self.path!r} to be called as f(t, y, ...), or with "
                f"t=..., first at the start of the solve, t = {first:g}, but got t = "
                f"{t.detach().flatten()[:3].tolist()} of shape {tuple(t.shape)}. Name the module "
                f"that is passed to odeint."
            )
        if self.span is None:
            self.span = first, last
            assert self.draw is not None
            self.check(self.draw)
        t0, t1 = self.span
        if {_near(first, t0, t1), _near(last, t0, t1)} != {t0, t1}:
            origin = "" if self.asked else " (that of the first solve)"
            raise ValueError(
                f"Expected the vector field {self.path!r} to be solved over its span"
                f"{origin}, t0 = {t0:g}, t1 = {t1:g}, in either direction, but got a solve from "
                f"t = {first:g} to {last:g}. Give the span that the model solves: t0=..., t1=...; "
                f"for several spans of one field use ODEBlock(..., horizon=GridHorizon())."
            )

    def _watch_unseen(self, t: Tensor) -> None:
        if self.span is None:
            raise ValueError(
                f"Expected t0 and t1, the span that the model solves the vector field "
                f"{self.path!r} over: it was evaluated outside of torchdiffeq, where the times of "
                f"a solve are not seen. Give both: t0=..., t1=...; put an evaluation that "
                f"belongs to no solve inside `with steer_lightning.nominal(field): ...`."
            )
        self._outside = True
        if self._reached is not None and len(self._reached) < 1000:
            self._reached.add(float(t.detach().flatten()[0]))

    def _warp_in_force(self) -> TimeWarp | None:
        draw = self.history.current()
        return None if draw is None else self._warp_of(draw)

    def _warp_of(self, draw: Draw) -> TimeWarp | None:
        """The warp of a draw, ``None`` if it moves nothing; made once."""
        if self._warp is None or self._warp[0] is not draw:
            assert self.span is not None
            offsets = draw.offsets(self._gap(), None, clip=False)
            t0, t1 = self.span
            offset = 0.0 if offsets is None else float(offsets)
            warp = None if offsets is None else TimeWarp(t0, t0, 1.0 + offset / (t1 - t0))
            self._warp = draw, warp
            self.note(t1 + offset)
        return self._warp[1]

    def _gap(self) -> Tensor:
        assert self.span is not None
        return torch.tensor([self.span[1] - self.span[0]], dtype=torch.float64)

    def _ends(self) -> str:
        assert self.span is not None
        return f"{self.span[0]:g}, {self.span[1]:g}"


def _differ(t: Tensor) -> bool:
    """Whether a time is several, and not one that was expanded."""
    return t.numel() > 1 and any(t.stride()) and bool((t != t.flatten()[0]).any())


def _near(t: float, t0: float, t1: float) -> float | None:
    """The end of a span that a time lies at."""
    ends = (end for end in (t0, t1) if abs(t - end) <= 1e-5 * abs(t1 - t0) + 1e-6 * abs(end))
    return next(ends, None)
