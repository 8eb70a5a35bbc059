"""Warnings before a solve fails: of steps that shrink, and of fields that are random."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from steer_lightning.solvers import SolveStats
from steer_lightning.solvers.randomness import solve_probed, suspects
from steer_lightning.solvers.wrapping import wrapped_solves
from steer_lightning.steering.targets import find_stats
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.problem import VectorField

RandomFields = Literal["warn", "raise", "ignore"]

_FEWEST_STEPS = 10  # of which a share says something


class StepWatch:
    """Warns of a block whose steps become small or are often rejected, once an epoch.

    Args:
        min_dt: Steps below this are too small, in units of time.
        max_rejected: Shares of rejected steps above this are too large.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, min_dt: float, max_rejected: float) -> None:
        if not min_dt >= 0:
            raise ValueError(f"Expected `min_dt` >= 0, but got {min_dt}.")
        if not 0 < max_rejected <= 1:
            raise ValueError(f"Expected 0 < `max_rejected` <= 1, but got {max_rejected}.")
        self.min_dt = min_dt
        self.max_rejected = max_rejected
        self._watched: dict[str, SolveStats] = {}
        self._before: dict[str, SolveStats] = {}

    def start_epoch(self, model: nn.Module) -> None:
        """Watch every block, those that were warned of too."""
        self._watched = find_stats(model)

    def start(self) -> None:
        """A batch begins; whoever resets counts has done so."""
        for path, stats in self._watched.items():
            stats.smallest_dt = float("inf")
            self._before[path] = replace(stats)

    def check(self) -> None:
        """A batch has ended well."""
        for path, stats in list(self._watched.items()):
            before = self._before[path]
            trouble = self._trouble(stats, before)
            if trouble is not None:
                del self._watched[path]
                nfe = stats.nfe_forward + stats.nfe_backward
                nfe -= before.nfe_forward + before.nfe_backward
                rank_zero_warn(
                    f"The solves of block {path!r} are close to failing: {trouble}, with NFE = "
                    f"{nfe} for one batch. The vector field is stiff, random, or asked for more "
                    f"accuracy than its dtype has. Loosen rtol and atol, lower the learning rate, "
                    f"regularise the field, or use a fixed grid."
                )

    def _trouble(self, stats: SolveStats, before: SolveStats) -> str | None:
        if stats.smallest_dt < self.min_dt:
            return f"a step of dt = {stats.smallest_dt:.3g} is below min_dt = {self.min_dt:g}"
        for phase in ("", "_backward"):
            rejected, accepted = (
                getattr(stats, name + phase) - getattr(before, name + phase)
                for name in ("rejected", "accepted")
            )
            tried = rejected + accepted
            if tried >= _FEWEST_STEPS and rejected > self.max_rejected * tried:
                return (
                    f"{rejected} of {tried} steps{' of the adjoint' * bool(phase)} were rejected, "
                    f"a share of {rejected / tried:.2f} where max_rejected = {self.max_rejected:g}"
                )
        return None


class FieldCheck:
    """Looks once whether the vector fields of a model have one value at one point.

    Args:
        reaction: ``"warn"``, ``"raise"`` or ``"ignore"``.

    Raises:
        ValueError: If ``reaction`` is unknown; inside :meth:`watching` if a field is random and
            the reaction is to raise.
    """

    def __init__(self, reaction: RandomFields) -> None:
        check_choice("random_fields", reaction, ("warn", "raise", "ignore"))
        self.reaction = reaction
        self._pending = False

    def arm(self) -> None:
        """Look at the next batch."""
        self._pending = self.reaction != "ignore"

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Look at every field that is solved inside, if this is the first time."""
        if not self._pending:
            yield
            return
        self._pending = False
        with wrapped_solves(model, partial(solve_probed, _Report(model, self.reaction))):
            yield


class _Report:
    """Says once of each block what is wrong with its field."""

    def __init__(self, model: nn.Module, reaction: RandomFields) -> None:
        self.paths = {module: path for path, module in model.named_modules()}
        self.blocks = {id(stats): repr(path) for path, stats in find_stats(model).items()}
        self.reaction = reaction
        self.reported: set[str] = set()

    def __call__(self, stats: SolveStats | None, vector_field: VectorField, trouble: str) -> None:
        block = self.blocks.get(id(stats), "that keeps no counts")
        name = self._name(vector_field)
        if block + name in self.reported:
            return
        self.reported.add(block + name)
        layers = [f"{type(m).__name__} {self.paths.get(m, '')!r}" for m in suspects(vector_field)]
        message = (
            f"The vector field of block {block}, {name}, defines no ODE: {trouble}. Suspected: "
            f"{', '.join(layers) or 'noise that its forward draws'}. An adaptive solver shrinks "
            f"its step on a random field until it fails, and no solver converges. Leave these "
            f"layers out of the field or keep them in eval mode (.eval()); draw noise once for a "
            f"solve, before it, and keep it in the field."
        )
        if self.reaction == "raise":
            raise ValueError(message)
        rank_zero_warn(message)

    def _name(self, vector_field: VectorField) -> str:
        """Type and path of a field, or of what a wrapper around it wraps."""
        if isinstance(vector_field, nn.Module):
            for module in vector_field.modules():
                if module in self.paths:
                    return f"{type(module).__name__} {self.paths[module]!r}"
        return getattr(vector_field, "__name__", type(vector_field).__name__)
