"""Penalties as a Lightning callback."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from steer_lightning.callbacks.counted import CountedDraws
from steer_lightning.callbacks.run_state import left_out
from steer_lightning.penalties import Penalty
from steer_lightning.penalties.control import Penalizing
from steer_lightning.steering.targets import as_paths
from steer_lightning.utils.patching import WrappedMethods


class PenaltyCallback(CountedDraws):
    """Add penalties on trajectories to the loss of training.

    Each training solve of the model's blocks is read at random times inside its (steered) span;
    the penalties of what is seen there are added to what ``training_step`` returns. Evaluation
    is not touched, and neither is a step in which all weights are zero. The times depend on the
    seed, this callback's own count of batches and the path of the block, are equal on all ranks,
    and go on exactly in a resumed run. Where you optimise by hand, add
    ``steer_lightning.penalty(self)`` to the loss yourself.

    Args:
        penalties: What to add, from :mod:`steer_lightning.penalties` or of your own.
        vector_fields: Dotted paths of the modules that a foreign model passes to ``odeint``: one
            evaluation in each training step is seen, kept at random, and under an adjoint its
            state is held constant. Every block of the model if not given.
        seed: Seed of the probe times; that of ``seed_everything``, or torch's, if not given. The
            seed of a checkpoint takes precedence.

    Raises:
        TypeError: If something else than penalties is given.
        ValueError: At the start of ``fit`` if there is nothing to look at or a penalty needs what
            a solver does not have; after the first batch if no solve of it was seen.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from steer_lightning.penalties import Acceleration, KineticEnergy
        >>> callback = PenaltyCallback(Acceleration(weight=1.0), KineticEnergy(weight=0.1))
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        *penalties: Penalty,
        vector_fields: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> None:
        for given in penalties:
            if not isinstance(given, Penalty):
                raise TypeError(
                    f"Expected penalties, one argument each, but got {given!r}. Write "
                    f"PenaltyCallback(*penalties) for a list."
                )
        self.penalties = penalties
        self.vector_fields = as_paths("vector_fields", vector_fields)
        super().__init__(seed, {p.name: repr(p) for p in penalties})
        self._penalizing: Penalizing | None = None
        self._verified = False
        self._methods: WrappedMethods | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what to look at, agree on a seed, and print the weights."""
        self.agreed_seed(trainer)
        self._penalizing = Penalizing(pl_module, self.penalties, self.vector_fields)
        self._verified = False
        if pl_module.automatic_optimization:
            self._methods = WrappedMethods(pl_module)
            self._methods.wrap("training_step", self._penalised)
        rank_zero_info(self._penalizing.table())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._penalizing is not None
        now = {"step": trainer.global_step, "epoch": trainer.current_epoch}
        weights = {p.name: p.weight.at(**now) for p in self.penalties}
        seed, step = self.agreed_seed(trainer), self.next_step()
        self._penalizing.start(seed=seed, step=step, weights=weights)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert self._penalizing is not None
        if outputs is None:  # the loader gave none: no batch has begun
            return
        self._in_hand = 0
        if not self._verified and not left_out(pl_module, outputs):
            self._penalizing.check_seen("in the first training batch with a penalty")
            self._verified = bool(self._penalizing.values)
        pl_module.log_dict(self._penalizing.in_force(), on_step=True, on_epoch=False)
        self._penalizing.stop()

    def rest(self) -> None:
        if self._penalizing is not None:
            self._penalizing.stop()

    def _penalised(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The training step, with the penalties in its loss."""
        assert self._penalizing is not None
        self._penalizing.values = {}  # an optimiser's closure may take the step several times
        output = step(*args, **kwargs)
        if output is None:
            return None
        if isinstance(output, torch.Tensor):
            return output + self._penalizing.take()
        return {**output, "loss": output["loss"] + self._penalizing.take()}

    def release(self) -> None:
        if self._methods is not None:
            self._methods.release()
        if self._penalizing is not None:
            self._penalizing.release()
        self._methods = self._penalizing = None
