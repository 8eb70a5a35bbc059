"""Penalties of a model's training steps: without Lightning."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steer_lightning.nn.block import Block
from steer_lightning.nn.probes import Probed, Probing
from steer_lightning.nn.series.ode_rnn import ODERNN
from steer_lightning.penalties.attached import AttachedProbe
from steer_lightning.penalties.base import Penalty
from steer_lightning.steering.targets import as_paths, find_fields, named_parts
from steer_lightning.utils.processes import agreed_seed
from steer_lightning.utils.seeding import stream_key

_ACTIVE: dict[nn.Module, "Penalizing"] = {}


class Penalizing:
    """The penalties of one model, and what its solves have shown of a step.

    Arguments are those of :func:`penalize`, as are the errors.
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Sequence[Penalty],
        vector_fields: Sequence[str] | None = None,
    ) -> None:
        if isinstance(penalties, Penalty) or not all(isinstance(p, Penalty) for p in penalties):
            raise TypeError(f"Expected a list of penalties, but got {penalties!r}.")
        names = [penalty.name for penalty in penalties]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Expected penalties, each once, but got {names}.")
        if model in _ACTIVE:
            raise ValueError(
                f"Expected one owner for the penalties of {type(model).__name__}, but somebody "
                f"has them already. Give all penalties to one."
            )
        self.model = model
        self.penalties = list(penalties)
        self.values: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._blocks: dict[str, Block] = {}
        self._attached: dict[str, AttachedProbe] = {}
        vector_fields = as_paths("vector_fields", vector_fields)
        if vector_fields is None:
            self._blocks = {p: part for p, part in named_parts(model) if isinstance(part, Block)}
            self._check_blocks()
        else:
            fields = find_fields(model, vector_fields)
            self._check_attached(list(fields))
            self._attached = {path: AttachedProbe(field) for path, field in fields.items()}
        _ACTIVE[model] = self

    def _check_blocks(self) -> None:
        if not self._blocks:
            for path, module in self.model.named_modules():
                if isinstance(module, ODERNN):
                    raise ValueError(
                        f"Expected a solve that can be read at random times, but {path!r}, the "
                        f"ODE-RNN of {type(self.model).__name__}, unrolls by Euler steps and "
                        f"jumps at observations. KineticEnergy, JacobianNorm and Acceleration "
                        f"can look at its field: vector_fields=['{path}.vector_field']."
                    )
            raise ValueError(
                f"Expected a model with blocks of steer_lightning.nn, but "
                f"{type(self.model).__name__} has none. Name the modules that it passes to "
                f"odeint: vector_fields=['flow.func']."
            )
        for path, block in self._blocks.items():
            for penalty in self.penalties:
                if not penalty.fits(block.solver):
                    raise ValueError(
                        f"Expected {penalty.solvers} in the block {path!r} for {penalty.name}, "
                        f"which needs the error or the stages of its steps, but got "
                        f"{block.solver}."
                    )

    def _check_attached(self, paths: list[str]) -> None:
        for penalty in self.penalties:
            if penalty.needs_steps or penalty.n_times > 1:
                raise ValueError(
                    f"Expected a penalty of one evaluation for the attached vector fields "
                    f"{paths}, but {penalty.name} needs the solver's steps or several states, "
                    f"which are not seen. LocalError(form='one_step') takes any."
                )

    def start(self, *, seed: int, step: int, weights: dict[str, float]) -> None:
        """A training step begins; where all weights are zero nothing is looked at."""
        self.stop()
        self.values, self._weights = {}, dict(weights)
        used = [p for p in self.penalties if self._weights[p.name] > 0.0]
        if not used:
            return
        n_times = max(penalty.n_times for penalty in used)
        steps = any(penalty.needs_steps for penalty in used)
        for path, block in self._blocks.items():
            block.probing = Probing(n_times, steps, _key(seed, step, path))
        for path, probe in self._attached.items():
            probe.start(_key(seed, step, path))

    def take(self) -> Tensor:
        """The weighted sum of what was seen since the last call, connected to its solves.

        The values are those of all solves, summed.
        """
        seen: list[Probed] = []
        for block in self._blocks.values():
            if block.probing is not None:
                seen += block.probing.seen
                block.probing.seen = []
        for probe in self._attached.values():
            seen += probe.collect()
        total = torch.zeros(())
        for penalty in self.penalties:
            if self._weights.get(penalty.name) and seen:
                # At the times that it asked for: another one may have asked for more.
                own = [(probed.n_solves, probed.first(penalty.n_times)) for probed in seen]
                value = torch.stack([n * penalty.value(probed) for n, probed in own]).sum()
                before = self.values.get(penalty.name, 0.0)
                self.values[penalty.name] = before + float(value.detach())
                total = total.to(value) + self._weights[penalty.name] * value
        return total

    def in_force(self) -> dict[str, float]:
        """Values and weights of the step, by the names they are logged under."""
        # NaN where a weight is zero: Lightning repeats what was logged last.
        logged = {f"penalty/{n}": self.values.get(n, math.nan) for n in self._weights}
        return logged | {f"penalty/{n}_weight": w for n, w in self._weights.items()}

    def check_seen(self, where: str) -> None:
        """Raise a ``ValueError`` if penalties are wanted and no solve was seen and taken."""
        if any(self._weights.values()) and not self.values:
            raise ValueError(
                f"No solve of {list(self._blocks) or list(self._attached)} was seen {where}, so "
                f"the penalties had no effect. Solve in training mode with gradients on; where "
                f"you optimise by hand, add steer_lightning.penalty(self) to the loss."
            )

    def stop(self) -> None:
        """Look at nothing any more."""
        for block in self._blocks.values():
            block.probing = None
        for probe in self._attached.values():
            probe.start(None)

    def release(self) -> None:
        """Leave the model as it was found."""
        self.stop()
        for probe in self._attached.values():
            probe.detach()
        _ACTIVE.pop(self.model, None)

    def table(self) -> str:
        """The penalties with their weights, as text."""
        where = ", ".join(self._blocks or self._attached)
        lines = [f"{penalty.name}: {penalty.weight}" for penalty in self.penalties]
        return "\n".join([f"Penalties on {where}, with their weights:", *lines])


def _key(seed: int, step: int, path: str) -> int:
    return stream_key("probe", seed, step, path, 0)  # the last one for a rank: equal on all


def penalty(model: nn.Module) -> Tensor:
    """The penalties of what a model has solved in this step, to be added to its loss.

    Args:
        model: The model that ``penalize`` or ``PenaltyCallback`` was given.

    Returns:
        Weighted sum, shape ``()``; zero outside of training steps.

    Raises:
        ValueError: If the model has no penalties.

    Example:
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> from steer_lightning.penalties import KineticEnergy
        >>> model = ODEBlock(MLPField(2, (8,)))
        >>> with penalize(model, [KineticEnergy(weight=0.1)], step=0, seed=1):
        ...     loss = model(torch.ones(4, 2)).square().mean() + penalty(model)
    """
    if model not in _ACTIVE:
        raise ValueError(
            f"Expected a model under penalties, but {type(model).__name__} has none. Call this "
            f"inside `with penalize(model, ...)`, or with the module that PenaltyCallback trains."
        )
    return _ACTIVE[model].take()


@contextmanager
def penalize(
    model: nn.Module,
    penalties: Sequence[Penalty],
    *,
    step: int,
    epoch: int = 0,
    vector_fields: Sequence[str] | None = None,
    seed: int | None = None,
) -> Iterator[None]:
    """Look at the solves of one training step, for :func:`~steer_lightning.penalty`.

    Goes together with ``steer``. The backward pass may come after it, but not of a block under
    ``torch.utils.checkpoint``, which solves there again.

    Args:
        model: Any model, in training mode.
        penalties: What to add to the loss.
        step: Count of optimiser steps: another step, other probe times and weights.
        epoch: Count of epochs, for weights that follow it.
        vector_fields: Dotted paths of what the model passes to ``odeint``; its own blocks if not
            given.
        seed: Seed of the probe times; torch's initial seed if not given, that of the first process
            if there are several, all of which then have to come here. The global random stream is
            not touched.

    Raises:
        TypeError: If ``penalties`` is no list of them.
        ValueError: If a penalty does not fit the solver of a block, or there is no block; and at
            the end if nothing was taken.
    """
    penalizing = Penalizing(model, penalties, vector_fields)
    try:
        weights = {p.name: p.weight.at(step=step, epoch=epoch) for p in penalties}
        penalizing.start(seed=agreed_seed() if seed is None else seed, step=step, weights=weights)
        yield
        penalizing.check_seen("and taken inside `with penalize(...)`")
    finally:
        penalizing.release()
