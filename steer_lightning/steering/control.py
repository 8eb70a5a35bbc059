"""Moving a model's horizons and putting them back: without Lightning."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from steer_lightning.horizon import Horizon, SpanHorizon
from steer_lightning.horizon.base import moved
from steer_lightning.horizon.end_time import (
    Distribution,
    EndTimeDraw,
    FixedOffset,
    HalfWidth,
    Scope,
)
from steer_lightning.steering.attach import AttachedHorizon, Span
from steer_lightning.steering.targets import (
    as_paths,
    attach,
    attached_horizons,
    find_field,
    find_horizons,
    refuse_double_warp,
)
from steer_lightning.utils.seeding import stream_key

_CONTEXTS = itertools.count()


@dataclass(frozen=True)
class SteerSettings:
    r"""Settings of the draws of end times; see :class:`steer_lightning.SteerCallback`.

    Raises:
        ValueError: If a value is outside its range or a name is unknown.
    """

    b: HalfWidth
    vector_fields: tuple[str, ...] | None = None
    t0: float | None = None
    t1: float | None = None
    epsilon: float = 1e-3
    distribution: Distribution = "uniform"
    scope: Scope = "batch"
    warmup_steps: int = 0
    horizons: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, paths in (("vector_fields", self.vector_fields), ("horizons", self.horizons)):
            if paths is not None and not paths:
                raise ValueError(
                    f"Expected `{name}` to name at least one module, but got an empty list. "
                    f"Leave it out to take every horizon in the model."
                )
        if self.vector_fields is not None and self.horizons is not None:
            raise ValueError(
                "Expected one of `vector_fields` and `horizons`, but got both. Give each a "
                "callback of its own."
            )
        if self.warmup_steps < 0:
            raise ValueError(f"Expected `warmup_steps` >= 0, but got {self.warmup_steps}.")
        draw = self.draw(key=0, step=self.warmup_steps)  # checks the rest
        if self.span is not None:
            SpanHorizon(*self.span).check(draw)

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

    def draw(self, *, key: int, step: int) -> EndTimeDraw:
        """The draw of one step: ``b`` grows linearly from zero over ``warmup_steps``."""
        scale = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return EndTimeDraw(self.b, self.epsilon, self.distribution, self.scope, key, scale)


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

    def _find(self, model: nn.Module) -> dict[str, Horizon]:
        """The horizons to move, by name."""
        paths = self.settings.vector_fields
        if paths is None:
            return find_horizons(model, self.settings.horizons)
        for path in paths:  # so that no field gets hooks if another path leads nowhere
            find_field(model, path)
        return {path or "model": attach(model, path, self.settings.span) for path in paths}

    def _claim(self) -> None:
        """Become the owner of all horizons."""
        draw = self.settings.draw(key=0, step=self.settings.warmup_steps)
        for path, horizon in self.horizons.items():
            if horizon.owner not in (None, self.owner):
                raise ValueError(
                    f"Expected one owner for the horizon {path!r}, but {self.owner} asks and "
                    f"{horizon.owner} has it. Keep one of the two, or give them different "
                    f"`vector_fields` or `horizons`."
                )
            horizon.check(draw)
        for horizon in self.horizons.values():
            horizon.owner = self.owner

    def perturb(self, *, seed: int, step: int, rank: int = 0) -> None:
        """Draw the end times of one step; independent for each horizon, keyed by its path.

        Raises:
            ValueError: If the model is in eval mode, where nothing moves.
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
            horizon.perturb(self.settings.draw(key=key, step=step), self.root)

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

        Raises:
            ValueError: Names the horizon and the ways this comes about.
        """
        for path, horizon in self.horizons.items():
            foreign = isinstance(horizon, AttachedHorizon)
            if isinstance(horizon, AttachedHorizon):
                horizon.warn_of_doubts()
            if horizon.solved or (foreign_only and not foreign):
                continue
            if foreign:
                raise ValueError(
                    f"The vector field {path!r} was not called {where}, so STEER had no effect. "
                    f"Name the module that you pass to odeint. A closure, a direct call of "
                    f"`.forward`, or a model compiled around the field before training cannot be "
                    f"attached: pass the module itself, call it, compile the field and not the "
                    f"model around it."
                )
            raise ValueError(
                f"The horizon {path!r} was not solved {where}, so STEER had no effect on it. "
                f"Solve through the block that holds it, in the training step."
            )

    def table(self) -> str:
        """Each horizon with its span, ``b`` and scope, as text."""
        s = self.settings
        b = f"(1 - {s.epsilon:g}) gap" if s.b == "auto" else f"{s.b:g}"
        rows = [("horizon", "span", "b", "distribution", "scope")]
        rows += [(p, h.describe(), b, s.distribution, s.scope) for p, h in self.horizons.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(["STEER moves these end times in training:", *lines])


class EndTimes(Mapping[str, float]):
    """The end times of one training step, as far as its solves have made them known."""

    def __init__(self, steering: Steering) -> None:
        self._read = steering.in_force

    def freeze(self) -> None:
        """Keep the values of this moment."""
        values = self._read()
        self._read = lambda: values

    def __getitem__(self, name: str) -> float:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


@contextmanager
def steer(
    model: nn.Module,
    b: HalfWidth,
    *,
    step: int,
    vector_fields: Sequence[str] | None = None,
    t0: float | None = None,
    t1: float | None = None,
    epsilon: float = 1e-3,
    distribution: Distribution = "uniform",
    scope: Scope = "batch",
    warmup_steps: int = 0,
    seed: int | None = None,
    rank: int | None = None,
    horizons: Sequence[str] | None = None,
) -> Iterator[Mapping[str, float]]:
    r"""Move the end times of a model for one training step, in plain PyTorch or Fabric.

    .. math:: T \sim \mathcal{U}(t_1 - b,\; t_1 + b)

    A backward pass may come after the block: what it solves again has the end time of its forward
    pass. For this the hooks of attached fields stay, without effect otherwise.

    Args:
        model: Any model, in training mode; not Fabric's wrapper around it.
        b: Half-width of the end-time interval; ``"auto"`` for ``(1 - epsilon)`` of each.
        step: Count of training steps: another step, another draw.
        vector_fields: Dotted paths of what the model passes to ``odeint``, ``""`` for itself; its
            own horizons if not given.
        t0: Fixed end of the span of attached fields; with ``t1`` taken from the first solve if
            not given, which torchdiffeq has to do.
        t1: Moved end of that span.
        epsilon: Fraction of an interval left free.
        distribution: ``"uniform"`` or ``"normal"``.
        scope: ``"batch"``, ``"rank"`` or ``"sample"``.
        warmup_steps: Steps over which ``b`` grows from zero.
        seed: Seed of the draws; torch's initial seed if not given, that of the first process if
            there are several, all of which then have to come here. The global random stream is
            not touched.
        rank: Rank of this process; taken from ``torch.distributed`` if not given.
        horizons: Dotted paths of the parts of the model whose own horizons are moved; all of it
            if not given.

    Yields:
        The end times in force, by the names that the callback logs them under. Those that are
        known only after a solve (one for each sample, a span that is not given) are NaN or
        nominal before it.

    Raises:
        ValueError: See :class:`Steering` and :class:`SteerSettings`; and at the end of the block
            if a named vector field was not called in it.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Eq. 4.

    Example:
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> model = ODEBlock(MLPField(2, (8,)))
        >>> with steer(model, b=0.5, step=0, seed=1) as end_times:
        ...     model(torch.zeros(4, 2)).sum().backward()
        >>> 0.5 < end_times["steer/horizon/end_time"] < 1.5
        True
    """
    settings = SteerSettings(
        b,
        as_paths("vector_fields", vector_fields),
        t0,
        t1,
        epsilon,
        distribution,
        scope,
        warmup_steps,
        as_paths("horizons", horizons),
    )
    steering = Steering(model, settings, owner=f"steer(step={step}) #{next(_CONTEXTS)}")
    try:
        steering.perturb(
            seed=agreed_seed() if seed is None else seed,
            step=step,
            rank=current_rank() if rank is None else rank,
        )
        end_times = EndTimes(steering)
        yield end_times
        end_times.freeze()
        steering.check_solved("inside `with steer(...)`", foreign_only=True)
    finally:
        steering.release(detach=False)


@contextmanager
def end_time_offset_at(model: nn.Module, offset: float) -> Iterator[None]:
    """Evaluate a model with every span's end time moved by the same amount.

    What was in force before is in force again afterwards.

    Args:
        model: A model with :class:`SpanHorizon` s; grids are left alone.
        offset: ``T - t1``, in units of time.

    Raises:
        ValueError: If the model has no span, or the offset reaches ``t0``.

    Example:
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> model = ODEBlock(MLPField(2, (8,)))
        >>> with end_time_offset_at(model, -0.5):
        ...     y = model(torch.zeros(4, 2))
    """
    spans = [m for m in model.modules() if isinstance(m, SpanHorizon)]
    if not spans:
        raise ValueError(
            f"Expected a model with a SpanHorizon, but {type(model).__name__} has none: there is "
            f"no end time to move."
        )
    with moved(spans, FixedOffset(offset)):
        yield


@contextmanager
def nominal(module: nn.Module) -> Iterator[None]:
    """Evaluate a model or a vector field at nominal times within a training step.

    An attached field that is evaluated in no solve, for a residual of the physics say, would
    otherwise get the moved time and a scaled derivative.

    Args:
        module: The attached field, or any module that holds horizons or attached fields.

    Example:
        >>> field = nn.Linear(2, 2)
        >>> with nominal(field):
        ...     dy = field(torch.zeros(4, 2))
    """
    own = [m for m in module.modules() if isinstance(m, Horizon)]
    with moved([*own, *attached_horizons(module)], None):
        yield


def agreed_seed() -> int:
    """Torch's initial seed, that of the first process if there are several."""
    seeds = [torch.initial_seed()]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(seeds)
    return seeds[0]


def current_rank() -> int:
    """Rank of this process in ``torch.distributed``; zero without it."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
