"""The horizons of a model under one set of settings: found, claimed, moved, put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from steer_lightning.horizon import SpanHorizon
from steer_lightning.horizon.base import Movable
from steer_lightning.horizon.end_time import Distribution, EndTimeDraw, HalfWidth, Scope
from steer_lightning.steering.attach import AttachedHorizon, Span
from steer_lightning.steering.targets import (
    as_paths,
    attach,
    find_fields,
    find_horizons,
    refuse_double_warp,
)
from steer_lightning.utils.plain import as_plain
from steer_lightning.utils.schedule import Schedule
from steer_lightning.utils.seeding import stream_key


@dataclass(frozen=True)
class SteerSettings:
    r"""Settings of the draws of end times; see :class:`steer_lightning.SteerCallback`.

    Raises:
        ValueError: If a value is outside its range or a name is unknown.
    """

    b: HalfWidth | Schedule
    vector_fields: Sequence[str] | None = None
    t0: float | None = None
    t1: float | None = None
    epsilon: float | Schedule = 1e-3
    distribution: Distribution = "uniform"
    scope: Scope = "batch"
    horizons: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("b", "t0", "t1", "epsilon"):
            object.__setattr__(self, name, as_plain(getattr(self, name)))
        for name in ("vector_fields", "horizons"):
            paths = as_paths(name, getattr(self, name))
            object.__setattr__(self, name, paths)
            if paths == ():
                raise ValueError(
                    f"Expected `{name}` to name at least one module, but got an empty list. "
                    f"Leave it out to take every horizon in the model."
                )
        if self.vector_fields is not None and self.horizons is not None:
            raise ValueError(
                "Expected one of `vector_fields` and `horizons`, but got both. Give each a "
                "callback of its own."
            )
        if isinstance(self.b, Schedule) and self.b.lowest < 0.0:
            raise ValueError(
                f"Expected a schedule of `b` that is never negative, but got {self.b}."
            )
        if isinstance(self.epsilon, Schedule):
            self._draw(0.0, self.epsilon.highest)  # checks it
        widest = self.widest()  # checks the rest
        if self.span is not None:
            SpanHorizon(*self.span).check(widest)

    @property
    def span(self) -> Span | None:
        """The span of attached fields, if it is given."""
        if self.t0 is None and self.t1 is None:
            return None
        if self.vector_fields is None or self.t0 is None or self.t1 is None:
            raise ValueError(
                f"Expected both `t0` and `t1` with `vector_fields`, or none of them, but got "
                f"t0 = {self.t0}, t1 = {self.t1}, vector_fields = {self.vector_fields}. They are "
                f"the span of attached fields; a block of this library has its own, `t_span`."
            )
        return self.t0, self.t1

    def widest(self) -> EndTimeDraw:
        """A draw of the largest ``b``, to check what it is to move."""
        b, epsilon = self.b, self.epsilon
        return self._draw(
            b.highest if isinstance(b, Schedule) else b,
            epsilon.lowest if isinstance(epsilon, Schedule) else epsilon,
        )

    def draw_at(self, step: int, epoch: int) -> EndTimeDraw:
        """The draw after so many steps of the optimiser, and epochs; its key is still open."""
        b, epsilon, now = self.b, self.epsilon, {"step": step, "epoch": epoch}
        return self._draw(
            b.at(**now) if isinstance(b, Schedule) else b,
            epsilon.at(**now) if isinstance(epsilon, Schedule) else epsilon,
        )

    def _draw(self, b: HalfWidth, epsilon: float) -> EndTimeDraw:
        return EndTimeDraw(b, epsilon, self.distribution, self.scope)


class Steering:
    """The horizons of one model under one set of settings, claimed by one owner.

    Args:
        model: Any model. Its own horizons are found by type; named vector fields get one.
        settings: What to draw.
        owner: Who claims the horizons, for messages; unique to the claimant.

    Raises:
        ValueError: If there is nothing to steer, a path leads nowhere, ``b`` does not fit a
            horizon, or a horizon has an owner already.
    """

    def __init__(self, model: nn.Module, settings: SteerSettings, owner: str) -> None:
        if hasattr(model, "_forward_module"):
            raise TypeError(
                f"Expected the model itself, but got {type(model).__name__}, Fabric's wrapper "
                f"around it. Give the unwrapped model: {type(model).__name__}.module."
            )
        self.root = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self.settings = settings
        self.owner = owner
        self.horizons = self._find(model)
        try:
            self._claim()
            refuse_double_warp(model)
        except ValueError:
            self.release(detach=True)
            raise

    def _find(self, model: nn.Module) -> dict[str, Movable]:
        """The horizons to move, by name."""
        paths = self.settings.vector_fields
        if paths is None:
            return dict(find_horizons(model, self.settings.horizons))
        fields = find_fields(model, paths)  # all, before one of them gets hooks
        found = zip(paths, fields.values(), strict=True)
        return {p or "model": attach(model, p, f, self.settings.span) for p, f in found}

    def _claim(self) -> None:
        """Become the owner of all horizons."""
        draw = self.settings.widest()
        for path, horizon in self.horizons.items():
            if horizon.owner not in (None, self.owner):
                raise ValueError(
                    f"Expected one owner for the horizon {path!r}, but {self.owner} asks and "
                    f"{horizon.owner} has it. Keep one of the two, or give them different "
                    f"`vector_fields` or `horizons`."
                )
            horizon.check(draw)
            horizon.owner = self.owner

    def perturb(self, draw: EndTimeDraw, *, seed: int, step: int, rank: int = 0) -> None:
        """Draw the end times of one step; independent for each horizon, keyed by its path.

        Args:
            draw: The draw of this step, but for its key.
            seed: Seed of the draws.
            step: Count of draws.
            rank: Of this process.
        """
        if not self.root.training:
            raise ValueError(
                f"Expected {type(self.root).__name__} in training mode, but it is in eval mode, "
                f"where STEER has no effect. Call .train() on it before the training step; parts "
                f"of it may stay in eval mode."
            )
        apart = rank if self.settings.scope in ("rank", "sample") else 0
        for path, horizon in self.horizons.items():
            key = stream_key("end_time", seed, step, path, apart)
            horizon.solved = False
            horizon.perturb(replace(draw, key=key), self.root)

    def reset(self) -> None:
        """Put every horizon back to its nominal end time."""
        for horizon in self.horizons.values():
            horizon.reset()

    def release(self, *, detach: bool) -> None:
        """Reset, give up ownership, and take hooks off if asked."""
        for horizon in self.horizons.values():
            if horizon.owner not in (None, self.owner):
                continue  # refused: it is somebody else's
            horizon.reset()
            horizon.owner = None
            if detach and isinstance(horizon, AttachedHorizon):
                horizon.detach()

    @property
    def spans(self) -> dict[str, Span | None]:
        """The spans of attached fields, as far as they are known."""
        attached = ((p, h) for p, h in self.horizons.items() if isinstance(h, AttachedHorizon))
        return {path: horizon.span for path, horizon in attached}

    def take_spans(self, spans: Mapping[str, Span | None]) -> None:
        """Go on with the spans of a run before, or of another process."""
        for path, horizon in self.horizons.items():
            if isinstance(horizon, AttachedHorizon) and horizon.asked is None:
                horizon.span = spans.get(path, horizon.span)

    def in_force(self) -> dict[str, float]:
        """The values in force by their logged names, ``steer/<path>/end_time``."""
        return {
            f"steer/{path}/{name}": value
            for path, horizon in self.horizons.items()
            for name, value in horizon.in_force().items()
        }

    def check_solved(self, where: str, *, foreign_only: bool = False) -> None:
        """Raise if a horizon was not solved since its last draw; warn of what looks wrong.

        Args:
            where: Where it should have been, for the message.
            foreign_only: Check attached vector fields alone: a horizon of this library takes part
                in every solve of its block.
        """
        for path, horizon in self.horizons.items():
            if isinstance(horizon, AttachedHorizon):
                horizon.warn_of_doubts()
                if horizon.span is not None:  # b may grow
                    horizon.check(self.settings.widest())
                if not horizon.solved:
                    raise ValueError(
                        f"The vector field {path!r} was not called {where}, so STEER had no "
                        f"effect. Name the module that you pass to odeint. A closure, a direct "
                        f"call of `.forward`, or a model compiled around the field before "
                        f"training cannot be attached: pass the module itself, call it, compile "
                        f"the field and not the model around it."
                    )
            elif not (horizon.solved or foreign_only):
                raise ValueError(
                    f"The horizon {path!r} was not solved {where}, so STEER had no effect on it. "
                    f"Solve through the block that holds it, in the training step, or name the "
                    f"parts of the model that are solved: horizons=[...]."
                )

    def table(self) -> str:
        """Each horizon with its span, ``b`` and scope, as text."""
        s = self.settings
        b = f"(1 - {s.epsilon}) gap" if s.b == "auto" else str(s.b)
        rows = [("horizon", "span", "b", "distribution", "scope")]
        rows += [(p, h.describe(), b, s.distribution, s.scope) for p, h in self.horizons.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(["STEER moves these end times in training:", *lines])
