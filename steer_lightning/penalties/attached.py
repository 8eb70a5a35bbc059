"""A probe of somebody else's solve: one of the evaluations of its vector field."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from steer_lightning.nn.probes import Probed
from steer_lightning.solvers.foreign import solve_in_progress, watch_solves
from steer_lightning.steering.contexts import nominal
from steer_lightning.steering.targets import attached_horizons
from steer_lightning.utils.autograd import in_backward
from steer_lightning.utils.problem import first_part, held_by, holding
from steer_lightning.utils.seeding import stream
from steer_lightning.utils.watching import Watching, unseen


class AttachedProbe:
    """Keeps one evaluation of a vector field in each training step, by a forward hook.

    Each of the ``n`` evaluations of a step is kept with probability ``1 / n`` (reservoir
    sampling): times follow the density at which the solver evaluates, so that nothing is an
    unbiased estimate of an integral over time. One of the ``m`` of its solve, it stands for
    ``n / m`` solves: their values add up. Under an adjoint the solver runs without a graph,
    and the state that is kept is a constant. The span is that of torchdiffeq's solve; where none
    is seen it is taken for one from here on, of length one; under STEER it is the drawn one.

    Args:
        field: The module that is passed to ``odeint``; called as ``f(t, y, ...)``.
    """

    def __init__(self, field: nn.Module) -> None:
        self.field = field
        self._warned = False
        self._handle = field.register_forward_hook(_Keep(self), with_kwargs=True)
        self.start(None)
        watch_solves()

    def start(self, key: int | None) -> None:
        """A batch begins; ``None`` looks at nothing."""
        self._active = key is not None
        self._n_evaluations = 0
        self._solve: Any = None
        self._n_of_solve = [0]  # shared with what is kept of it
        self._kept: tuple[Any, ...] | None = None
        self._key = key
        self._chance = stream("cpu", key, "reservoir")

    def __getstate__(self) -> dict[str, Any]:
        """A copy has seen nothing: what is kept belongs to the graph of a loss."""
        return {**self.__dict__, "_kept": None, "_solve": None}

    def detach(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep an evaluation, perhaps."""
        if not self._active or in_backward() or not self.field.training:
            return
        self._n_evaluations += 1
        solve = solve_in_progress()
        if solve is not None and not solve.is_of(self.field) and not self._warned:
            self._warned = True
            warnings.warn(
                f"A penalty looks at a {type(self.field).__name__}, but odeint got a "
                f"{type(solve.func).__name__} around it: what it returns need not be the "
                f"derivative of the state. Name the module that is passed to odeint.",
                stacklevel=3,
            )
        if solve is not self._solve:
            self._solve, self._n_of_solve = solve, [0]
        self._n_of_solve[0] += 1
        if float(torch.rand((), generator=self._chance)) * self._n_evaluations < 1.0:
            ends = None if solve is None or solve.times is None else solve.times[[0, -1]].detach()
            if ends is not None:
                for horizon in attached_horizons(self.field, inside=False):
                    ends = horizon.actual(ends)
            self._kept = args, kwargs, ends, held_by(self.field), self._n_of_solve

    def collect(self) -> list[Probed]:
        """What was kept in this batch, as far as it was not collected yet."""
        if self._kept is None:
            return []
        (args, kwargs, ends, held, [n_of_solve]), key = self._kept, self._key
        n_solves = self._n_evaluations / n_of_solve
        self.start(self._key)  # an optimiser's next closure keeps the same one
        given = dict(enumerate(args)) | kwargs
        time: Any = "t" if "t" in kwargs else 0
        place = next(key for key in given if key != time)  # of the state
        # A solver's first step, and so its times, may have a graph: no part of a penalty.
        t, state = given[time].detach(), given[place]
        y = first_part(state)
        if t.numel() not in (1, y.shape[:1].numel()):
            raise ValueError(
                f"Expected the vector field to be called as f(t, y, ...), or with t=..., and one "
                f"time, or one for each sample, but got t of shape {tuple(t.shape)}. Name the "
                f"module that is passed to odeint."
            )
        t = t.reshape(()) if t.numel() == 1 else t
        t0, t1 = (t, t + 1.0) if ends is None else ends.to(y.device, y.real.dtype)
        span = 1.0 if ends is None else float(ends[1]) - float(ends[0])
        shares = () if ends is None else (float(t.flatten()[0] - ends[0]) / span,)

        def field(t: Tensor, y: Tensor) -> Tensor:
            whole = (y, *state[1:]) if isinstance(state, tuple) else y
            now = {**given, time: t, place: whole}
            with nominal(self.field), unseen(self.field), holding(held):
                found = self.field(
                    *(now[i] for i in range(len(args))), **{name: now[name] for name in kwargs}
                )
            return first_part(found)

        noise = stream(y.device, key, "noise")
        return [
            Probed(
                field, (t,), (y,), (t0, t1), (), abs(span), noise, n_solves=n_solves,
                shares=shares, direction=math.copysign(1.0, span),
            )
        ]  # fmt: skip


class _Keep(Watching):
    """The hook."""

    def __init__(self, probe: AttachedProbe) -> None:
        self.probe = probe

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.watching:
            self.probe.keep(args, kwargs)
