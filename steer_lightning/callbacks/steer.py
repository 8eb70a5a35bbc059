"""STEER as a Lightning callback."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from steer_lightning.callbacks.counted import CountedDraws, plain
from steer_lightning.callbacks.run_state import left_out
from steer_lightning.horizon.end_time import Distribution, HalfWidth, Scope
from steer_lightning.steering.attach import Span
from steer_lightning.steering.control import Steering, SteerSettings
from steer_lightning.utils.schedule import Schedule


class SteerCallback(CountedDraws):
    r"""Draw the end time of integration at random in training.

    .. math:: T \sim \mathcal{U}(t_1 - b,\; t_1 + b)

    Before each training batch every horizon of the model gets a new end time; after it, and for
    every evaluation, the nominal ``t1`` is back. The draws depend on the seed, this callback's own
    count of batches and the path of the horizon: never on the global random stream, and a resumed
    run continues them. With gradient accumulation each micro-batch has its own draw; closures of
    one step share theirs.

    Args:
        b: Half-width of the end-time interval, in units of time, ``0 <= b < |t1 - t0|``;
            ``"auto"`` for ``(1 - epsilon)`` times each interval, to which a number is cut on a
            grid of times; or a :class:`~steer_lightning.utils.schedule.Schedule`, for ``b`` that
            grows or decays.
        vector_fields: Dotted paths of the modules that a foreign model passes to ``odeint``,
            ``""`` for the model itself; every horizon of the model if not given.
        t0: Fixed end of the span that foreign fields are solved over; with ``t1`` taken from the
            first solve if not given, which torchdiffeq has to do.
        t1: Moved end of that span.
        epsilon: Fraction of an interval that ``b="auto"`` leaves free; a schedule that ends at 1
            lets ``b`` decay to zero on every interval of a grid.
        distribution: ``"uniform"``, or ``"normal"`` for ``N(t1, (b/2)^2)`` truncated at
            ``t1 +- b``.
        scope: ``"batch"``: one end time on all ranks; ``"rank"``: one on each rank; ``"sample"``:
            one for each sample, for horizons of this library.
        seed: Seed of the draws; ``PL_GLOBAL_SEED`` or torch's initial seed if not given. The
            seed of a checkpoint takes precedence.
        horizons: Dotted paths of the parts of the model whose own horizons are moved, such as
            ``["network.encoder"]``; all of it if not given. Several callbacks can move several
            parts by other ``b``.

    Raises:
        ValueError: If a value is out of range or a name unknown; at the start of ``fit`` if
            there is nothing to steer, a path leads nowhere, ``b`` does not fit, or another
            callback holds a horizon; in training if the module is in eval mode, or a foreign
            field is solved over another span; after the first batch if a horizon was not solved.

    References:
        Ghosh et al., *STEER: Simple Temporal Regularization for Neural ODEs*, NeurIPS 2020,
        arXiv:2006.10711, Eq. 4.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callback = SteerCallback(b=0.5, vector_fields=["flow.func"])
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        b: HalfWidth | Schedule,
        vector_fields: Sequence[str] | None = None,
        t0: float | None = None,
        t1: float | None = None,
        epsilon: float | Schedule = 1e-3,
        distribution: Distribution = "uniform",
        scope: Scope = "batch",
        seed: int | None = None,
        horizons: Sequence[str] | None = None,
    ) -> None:
        self.settings = SteerSettings(
            b, vector_fields, t0, t1, epsilon, distribution, scope, horizons
        )
        super().__init__(seed, plain(self.settings))
        self._steering: Steering | None = None
        self._verified = False
        self._spans: dict[str, Span | None] = {}

    b = property(attrgetter("settings.b"))
    vector_fields = property(attrgetter("settings.vector_fields"))
    t0 = property(attrgetter("settings.t0"))
    t1 = property(attrgetter("settings.t1"))
    epsilon = property(attrgetter("settings.epsilon"))
    distribution = property(attrgetter("settings.distribution"))
    scope = property(attrgetter("settings.scope"))
    horizons = property(attrgetter("settings.horizons"))

    @property
    def state_key(self) -> str:
        """What identifies it in checkpoints, which is what is steered, not how."""
        targets = {"vector_fields": self.settings.vector_fields}
        if self.settings.horizons is not None:
            targets["horizons"] = self.settings.horizons
        return self._generate_state_key(**targets)

    def state_dict(self) -> dict[str, Any]:
        """Also the spans of attached fields."""
        return {**super().state_dict(), "spans": self._spans}

    def go_on(self, state_dict: dict[str, Any]) -> None:
        super().go_on(state_dict)
        self._spans = state_dict["spans"]

    def start_anew(self) -> None:
        super().start_anew()
        self._spans = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find or attach the horizons, agree on a seed, and print what will be moved."""
        self.agreed_seed(trainer)
        self._steering = Steering(
            pl_module, self.settings, owner=f"SteerCallback(b={self.settings.b}) #{id(self)}"
        )
        self._steering.take_spans(self._spans)
        self._verified = False
        rank_zero_info(self._steering.table())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._steering is not None
        draw = self.settings.draw_at(trainer.global_step, trainer.current_epoch)
        seed, step = self.agreed_seed(trainer), self.next_step()
        self._steering.perturb(draw, seed=seed, step=step, rank=trainer.global_rank)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert self._steering is not None
        if outputs is None:  # the loader gave none: no batch has begun
            return
        self._in_hand = 0
        if not self._verified and not left_out(pl_module, outputs):
            self._steering.check_solved("in the first training batch")
            self._agree_on_spans(trainer)
            self._verified = True
        pl_module.log_dict(self._steering.in_force(), on_step=True, on_epoch=False)
        self._steering.reset()

    def _agree_on_spans(self, trainer: Trainer) -> None:
        """Raise on all ranks if they took different spans from their first solves."""
        assert self._steering is not None
        spans = self._spans = self._steering.spans
        if not spans:
            return
        ends = [f"{path} from {s[0]:g} to {s[1]:g}" for path, s in spans.items() if s is not None]
        rank_zero_info(f"SteerCallback moves the end of the solves of {', '.join(ends)}")
        first = trainer.strategy.broadcast(spans)
        if not trainer.strategy.reduce_boolean_decision(spans == first, all=True):
            raise ValueError(
                f"Expected the same span of the vector fields {list(spans)} on all ranks, but "
                f"rank 0 solves over {first} and this one, rank {trainer.global_rank}, over "
                f"{spans}. Give the span that the model solves: t0=..., t1=..."
            )

    def rest(self) -> None:
        if self._steering is not None:
            self._steering.reset()

    def release(self) -> None:
        if self._steering is not None:
            self._steering.release(detach=True)
            self._steering = None
