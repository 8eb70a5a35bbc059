"""STEER for somebody else's model: forward hooks on the module that it passes to ``odeint``."""

from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.horizon import SpanHorizon
from steer_lightning.horizon.end_time import Draw
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.utils.autograd import in_backward


class AttachedHorizon(SpanHorizon):
    r"""The horizon of a vector field that somebody else's code solves.

    A pre-hook maps the time that ``f(t, y, ...)`` receives, a post-hook scales what it returns:
    the solver, its tolerances and its options stay as they are. Without a draw in force both
    hooks pass everything through untouched. The hooks must outlive the backward pass: an adjoint
    evaluates the field there.

    Args:
        field: The module passed to ``odeint``; called as ``f(t, y, ...)``.
        path: Its name, for messages.
        t0: Fixed end of the span that the model solves.
        t1: Moved end.
    """

    def __init__(self, field: nn.Module, path: str, t0: float = 0.0, t1: float = 1.0) -> None:
        super().__init__(t0, t1)
        self.path = path
        self._span_checked = False
        self._warps: dict[tuple[torch.device, torch.dtype], TimeWarp | None] = {}
        self._forward_draw: Draw | None = None
        self._handles = [
            field.register_forward_pre_hook(_MapTime(self), with_kwargs=True),
            field.register_forward_hook(_ScaleDerivative(self)),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def attached(self) -> bool:
        """Whether the hooks are still on."""
        return bool(self._handles)

    def perturb(self, draw: Draw) -> None:
        """Put a draw in force."""
        super().perturb(draw)
        self._warps = {}

    def _nominal(self) -> dict[str, Any]:
        return {**super()._nominal(), "_warps": {}}

    def check(self, draw: Draw) -> None:
        """Raise if ``b`` reaches ``t0``, or if each sample is to get an end time."""
        if draw.per_sample:
            raise ValueError(
                f"Expected scope='batch' or 'rank' for the attached vector field {self.path!r}, "
                f"but got 'sample': a foreign field takes one time for the whole batch. Use "
                f"steer_lightning.nn.ODEBlock for one end time per sample."
            )
        super().check(draw)

    def enter(self, t: Any) -> Any:
        """Actual time for the time a foreign solver passes."""
        if not isinstance(t, Tensor):
            if self._draw is None:
                return t
            got = "no time" if t is None else f"a time of type {type(t).__name__}"
            raise TypeError(
                f"Expected the vector field {self.path!r} to be called as f(t, y, ...) with a "
                f"tensor t, but got {got}. Name the module that is passed to odeint."
            )
        if not torch.compiler.is_compiling():
            self._watch(t)
        self.solved = True
        warp = self._warp_like(t)
        return t if warp is None else warp.actual(t)

    def leave(self, dy: Any) -> Any:
        """Derivative in nominal time."""
        warp = self._warp_like(dy[0] if isinstance(dy, (tuple, list)) else dy)
        return dy if warp is None else _scale(warp, dy)

    def _warp_like(self, x: Tensor) -> TimeWarp | None:
        """The warp in force on a tensor's device, made once for each draw."""
        if self._offsets is None:
            return None
        key = (x.device, x.dtype)
        if key not in self._warps:
            self._warps[key] = self.time_warp(x)
        return self._warps[key]

    def _watch(self, t: Tensor) -> None:
        """Refuse what would be silently wrong: a stale draw in a backward pass, a wrong span."""
        in_force = None if self._offsets is None else self._draw
        if in_backward():
            if self._forward_draw is not in_force:
                raise RuntimeError(
                    f"The vector field {self.path!r} is evaluated in a backward pass whose "
                    f"forward pass had another end time: the gradient would be wrong. Call "
                    f"backward before the end of the training step (or inside `with steer(...)`)."
                )
            return
        self._forward_draw = in_force
        if self._draw is None or self._span_checked:
            return
        ends = torch.tensor([self.t0, self.t1], dtype=torch.float64)
        # All entries at the same end: a module that is no vector field may get a state instead.
        distance = (ends[:, None] - t.detach().cpu().double().reshape(1, -1)).abs().amax(1).min()
        if float(distance) > 1e-5 * abs(self.t1 - self.t0):
            got = t.tolist() if t.numel() == 1 else f"a tensor of shape {tuple(t.shape)}"
            raise ValueError(
                f"Expected the vector field {self.path!r} to be asked first at an end of its "
                f"span, t0 = {self.t0:g} or t1 = {self.t1:g}, but got t = {got}. Name the module "
                f"that is passed to odeint, and give the span that the model solves: t0=..., "
                f"t1=..."
            )
        self._span_checked = True


class _MapTime:
    """Pre-hook: replaces ``t``. An object, so that a model with hooks can be pickled."""

    def __init__(self, horizon: AttachedHorizon) -> None:
        self.horizon = horizon

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        time = self.horizon.enter(args[0] if args else kwargs.get("t"))
        if args:
            return (time, *args[1:]), kwargs
        return args, {**kwargs, "t": time} if "t" in kwargs else kwargs


class _ScaleDerivative:
    """Post-hook: scales what the field returns."""

    def __init__(self, horizon: AttachedHorizon) -> None:
        self.horizon = horizon

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.horizon.leave(output)


def _scale(warp: TimeWarp, dy: Any) -> Any:
    if isinstance(dy, (tuple, list)):
        parts = [_scale(warp, part) for part in dy]
        return dy._make(parts) if hasattr(dy, "_make") else type(dy)(parts)
    return warp.rate * dy
