"""Warnings before a solve fails: of steps that shrink, and of fields that are random."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from steer_lightning.solvers import SolveStats
from steer_lightning.solvers.randomness import randomness, suspects
from steer_lightning.solvers.wrapping import wrapped_solves
from steer_lightning.steering.contexts import nominal
from steer_lightning.steering.targets import find_stats
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


def look_at_fields(model: nn.Module, reaction: RandomFields) -> AbstractContextManager[None]:
    """A context that checks that each field solved inside is deterministic.

    Of one that is not it warns, or it raises a ``ValueError``; or it does not look.
    """
    if reaction == "ignore":
        return nullcontext()
    reported: set[str] = set()

    def look(
        solve: Callable[..., Any], vector_field: VectorField, y0: Any, t_eval: Tensor,
        *, stats: SolveStats | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        with nominal(vector_field) if isinstance(vector_field, nn.Module) else nullcontext():
            trouble = randomness(vector_field, t_eval[0], y0)
        if trouble is not None:
            report(stats, vector_field, trouble)
        return solve(vector_field, y0, t_eval, stats=stats, **options)

    def report(stats: SolveStats | None, vector_field: VectorField, trouble: str) -> None:
        paths = {module: path for path, module in model.named_modules()}
        blocks = {id(own): repr(path) for path, own in find_stats(model).items()}
        block = blocks.get(id(stats), "that keeps no counts")
        name = _name(vector_field, paths)
        if block + name in reported:
            return
        reported.add(block + name)
        layers = [f"{type(m).__name__} {paths.get(m, '')!r}" for m in suspects(vector_field)]
        message = (
            f"The vector field of block {block}, {name}, defines no ODE: {trouble}. Suspected: "
            f"{', '.join(layers) or 'noise that its forward draws'}. An adaptive solver shrinks "
            f"its step on a random field until it fails, and no solver converges. Leave these "
            f"layers out of the field or keep them in eval mode (.eval()); draw noise once for a "
            f"solve, before it, and keep it in the field."
        )
        if reaction == "raise":
            raise ValueError(message)
        rank_zero_warn(message)

    return wrapped_solves(model, look)


def _name(vector_field: VectorField, paths: Mapping[nn.Module, str]) -> str:
    """Type and path of a field, or of what a wrapper around it wraps."""
    if isinstance(vector_field, nn.Module):
        for module in vector_field.modules():
            if module in paths:
                return f"{type(module).__name__} {paths[module]!r}"
    return getattr(vector_field, "__name__", type(vector_field).__name__)
