"""Contexts in which the end times of a model are moved, or are not: without Lightning."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from steer_lightning.horizon import Horizon, SpanHorizon
from steer_lightning.horizon.base import moved
from steer_lightning.horizon.end_time import Distribution, FixedOffset, HalfWidth, Scope
from steer_lightning.steering.control import Steering, SteerSettings
from steer_lightning.steering.targets import attached_horizons
from steer_lightning.utils.processes import agreed_seed, current_rank
from steer_lightning.utils.schedule import Schedule

_CONTEXTS = itertools.count()


class EndTimes(Mapping[str, float]):
    """The end times of one training step, as far as its solves have made them known."""

    def __init__(self, steering: Steering) -> None:
        self._read = steering.in_force

    def freeze(self) -> None:
        """Keep the values of this moment."""
        self._read = self._read().copy

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
    b: HalfWidth | Schedule,
    *,
    step: int,
    epoch: int = 0,
    vector_fields: Sequence[str] | None = None,
    t0: float | None = None,
    t1: float | None = None,
    epsilon: float | Schedule = 1e-3,
    distribution: Distribution = "uniform",
    scope: Scope = "batch",
    seed: int | None = None,
    rank: int | None = None,
    horizons: Sequence[str] | None = None,
) -> Iterator[Mapping[str, float]]:
    r"""Move the end times of a model for one training step, in plain PyTorch or Fabric.

    .. math:: T \sim \mathcal{U}(t_1 - b,\; t_1 + b)

    A backward pass may come after the block: what it solves again has the end time of its forward
    pass. For this the hooks of attached fields stay, without effect otherwise. The block and the
    forward pass in it belong in one thread, as autograd counts what it records in each of them.

    Args:
        model: Any model, in training mode; not Fabric's wrapper around it.
        b: Half-width of the end-time interval, in units of time; ``"auto"`` for ``(1 - epsilon)``
            of each; or a :class:`~steer_lightning.utils.schedule.Schedule`.
        step: Count of training steps: another step, another draw.
        epoch: Count of epochs, for a schedule that follows it.
        vector_fields: Dotted paths of what the model passes to ``odeint``, ``""`` for itself; its
            own horizons if not given.
        t0: Fixed end of the span of attached fields; with ``t1`` taken from the first solve if
            not given, which torchdiffeq has to do.
        t1: Moved end of that span.
        epsilon: Fraction of an interval left free, or a schedule.
        distribution: ``"uniform"`` or ``"normal"``.
        scope: ``"batch"``, ``"rank"`` or ``"sample"``.
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
        TypeError: If ``model`` is Fabric's wrapper.
        ValueError: If a setting is out of range or nothing can be steered; and at the end of the
            block if a named vector field was not called in it.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Eq. 4.

    Example:
        >>> import torch
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> model = ODEBlock(MLPField(2, (8,)))
        >>> with steer(model, b=0.5, step=0, seed=1) as end_times:
        ...     model(torch.zeros(4, 2)).sum().backward()
        >>> 0.5 < end_times["steer/horizon/end_time"] < 1.5
        True
    """
    settings = SteerSettings(b, vector_fields, t0, t1, epsilon, distribution, scope, horizons)
    steering = Steering(model, settings, owner=f"steer(step={step}) #{next(_CONTEXTS)}")
    try:
        steering.perturb(
            settings.draw_at(step, epoch),
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
        >>> import torch
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
        >>> import torch
        >>> field = nn.Linear(2, 2)
        >>> with nominal(field):
        ...     dy = field(torch.zeros(4, 2))
    """
    own = [m for m in module.modules() if isinstance(m, Horizon)]
    with moved([*own, *attached_horizons(module)], None):
        yield
