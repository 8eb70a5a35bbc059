"""Metrics and work of a trained model against the end time it is evaluated at."""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.data import extract_batch_size
from torch import nn

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.callbacks.plots.base import save_plot
from steer_lightning.callbacks.plots.style import in_words, legend_below, panels
from steer_lightning.horizon import SpanHorizon
from steer_lightning.solvers import SolverError
from steer_lightning.solvers.wrapping import find_solvers
from steer_lightning.steering.contexts import end_time_offset_at
from steer_lightning.steering.targets import find_stats
from steer_lightning.utils.checks import check_choice
from steer_lightning.utils.representation import Shown

_AVERAGERS = (StochasticWeightAveraging, WeightAveraging)


class EndTimeSweep(Shown, Callback):
    r"""A trained model's metrics against the end time it is *evaluated* at, t1 - b .. t1 + b.

    The module's ``evaluate(batch)`` gives its metrics as means over a batch. They are averaged
    over the batches by weight: the sum of a batch's weights if it has some (the module's
    ``loss_weight(batch)``), or else its number of samples. ``nfe_forward`` beside them is the mean
    number of function evaluations of a batch, where the model's blocks count them. Drawn once: at
    the end of training from training or validation batches, or at the end of a test from test
    batches. The numbers are written as CSV beside the plot. Far from its own end time a model
    can be stiff: an end time at which a solve fails, or needs more than ``max_nfe`` evaluations,
    gives NaN, a gap in the plot. A second sweep of the same batches has a number in its name.

    Args:
        b: Half-width of the sweep, in units of time.
        n_points: Number of end times.
        n_batches: Number of batches for each.
        split: Where the batches come from.
        max_nfe: Largest number of evaluations of a vector field in one solve of the sweep.
        t1: Centre of the sweep; the model's own end time if not given. Models of several end
            times, fixed or learned, are compared over one range by it.

    Raises:
        ValueError: If a number is out of range or ``split`` is unknown; before the first batch if
            the model has no span, ``b`` reaches ``t0``, or the module says by an attribute
            ``evaluates`` that its ``evaluate`` takes batches of another split alone.
        TypeError: Before the first batch, if the module has no method ``evaluate``.
    """

    def __init__(
        self,
        b: float,
        n_points: int = 11,
        n_batches: int = 1,
        split: Literal["train", "val", "test"] = "test",
        max_nfe: int = 1000,
        t1: float | None = None,
    ) -> None:
        check_choice("split", split, ("train", "val", "test"))
        if not b > 0 or n_points < 2 or n_batches < 1 or max_nfe < 1:
            raise ValueError(
                f"Expected b > 0, n_points >= 2, n_batches >= 1 and max_nfe >= 1, but got "
                f"b = {b}, n_points = {n_points}, n_batches = {n_batches}, max_nfe = {max_nfe}."
            )
        self.b = b
        self.n_points = n_points
        self.n_batches = n_batches
        self.split = split
        self.max_nfe = max_nfe
        self.t1 = t1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.testing != (self.split == "test"):
            return
        if not callable(getattr(pl_module, "evaluate", None)):
            raise TypeError(
                f"Expected a module with a method `evaluate(batch)` that gives its metrics, but "
                f"{type(pl_module).__name__} has none. Add it, or leave EndTimeSweep out."
            )
        if self.split != (only := getattr(pl_module, "evaluates", self.split)):
            raise ValueError(
                f"Expected split={only!r} of EndTimeSweep for {type(pl_module).__name__}, whose "
                f"`evaluate` takes no other batches, but got {self.split!r}."
            )
        if self.split == "val" and not trainer.enable_validation:
            raise ValueError(
                "Expected val batches to sweep over, but got none. Give the Trainer val data, or "
                "EndTimeSweep another split."
            )
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        behind = callbacks[callbacks.index(self) :]
        averagers = [c for c in behind if isinstance(c, _AVERAGERS)]
        if averagers and self.split != "test":
            rank_zero_warn(
                f"EndTimeSweep of {self.split} batches sweeps the weights of the last step, as "
                f"{type(averagers[0]).__name__} puts their mean into the model after it. Put the "
                f"sweep behind it in the list of callbacks."
            )
        _, offsets = self._end_times(pl_module)
        for offset in (offsets[0], offsets[-1]):
            _check_offset(pl_module, offset)

    on_test_start = on_fit_start

    def _end_times(self, pl_module: LightningModule) -> tuple[list[float], list[float]]:
        """End times to evaluate at, and how far from the model's own each of them is."""
        spans = (m.end_time for m in pl_module.modules() if isinstance(m, SpanHorizon))
        own = next(spans, math.nan)  # a model without a span is refused when it is moved
        t1 = own if self.t1 is None else self.t1
        steps = torch.linspace(-self.b, self.b, self.n_points, dtype=torch.float64)
        return (t1 + steps).tolist(), (t1 - own + steps).tolist()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.testing != (self.split == "test"):
            return
        loader = {
            "train": trainer.train_dataloader,
            "val": trainer.val_dataloaders,
            "test": trainer.test_dataloaders,
        }[self.split]
        if loader is None:
            rank_zero_warn("EndTimeSweep sweeps nothing: training ended before a validation.")
            return
        folder = run_folder(trainer) / "plots"  # asked for on every rank
        if not trainer.is_global_zero:
            return
        precision, stage = trainer.precision_plugin, trainer.state.stage
        modes = {module: module.training for module in pl_module.modules()}
        # As Lightning reads several loaders.
        mode: Any = "max_size_cycle" if self.split == "train" else "sequential"
        end_times, offsets = self._end_times(pl_module)
        try:
            if self.split == "val":  # its hooks may augment in training
                trainer.state.stage = RunningStage.VALIDATING
            batches = []
            for batch, *_ in islice(CombinedLoader(loader, mode), self.n_batches):
                hooked = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
                placed = trainer.strategy.batch_to_device(hooked)
                batches.append(precision.convert_input(placed))
            pl_module.eval()
            budget = _nfe_budget(pl_module, self.max_nfe)
            with torch.no_grad(), precision.val_step_context(), budget:
                rows = [_mean_metrics(pl_module, offset, batches) for offset in offsets]
        finally:
            trainer.state.stage = stage
            for module, training in modes.items():
                module.training = training
        names = max(rows, key=len)
        if not names:  # every solve failed, and each has been warned of
            return
        metrics = {name: [row.get(name, math.nan) for row in rows] for name in names}
        figure, [axes] = panels(1, len(metrics), (4.2 * len(metrics), 3.2))
        own = end_times[0] - offsets[0]
        for axis, (name, values) in zip(axes, metrics.items(), strict=True):
            axis.plot(end_times, values, marker="o", ms=3)
            axis.axvline(own, color="grey", ls=":", label="t1, the model's own end time")
            axis.set(xlabel="end time of evaluation T", ylabel=in_words(name))
        legend_below(figure)
        sweeps = [c for c in trainer.callbacks if isinstance(c, EndTimeSweep)]  # type: ignore[attr-defined]
        before = [c for c in sweeps[: sweeps.index(self)] if c.split == self.split]
        name = f"end_time_sweep_{self.split}" + (f"_{len(before) + 1}" if before else "")
        path = save_plot(trainer, figure, name, folder)
        if not leaves_files(trainer):
            return
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["end_time", *metrics])
            writer.writerows(zip(end_times, *metrics.values(), strict=True))
        rank_zero_info(f"Plot: {path}")

    on_test_end = on_train_end


@contextmanager
def _nfe_budget(model: nn.Module, max_nfe: int) -> Iterator[None]:
    """Lower the budget of every solver in a model."""
    solvers: list[Any] = [s for s in find_solvers(model) if hasattr(s, "max_nfe")]
    budgets = [(solver, solver.max_nfe) for solver in solvers]
    try:
        for solver, budget in budgets:
            solver.max_nfe = max_nfe if budget is None else min(budget, max_nfe)
        yield
    finally:
        for solver, budget in budgets:
            solver.max_nfe = budget


def _check_offset(pl_module: LightningModule, offset: float) -> None:
    """Raise a ``ValueError`` if an end time cannot be moved so far."""
    with end_time_offset_at(pl_module, offset):
        pass


def _mean_metrics(
    pl_module: LightningModule, offset: float, batches: Sequence[Any]
) -> dict[str, float]:
    """Mean metrics and evaluations at one end time; empty if it fails, or reaches ``t0``."""
    counts = find_stats(pl_module).values()
    before = sum(stats.nfe_forward for stats in counts)
    try:
        _check_offset(pl_module, offset)  # from where a learned end time is now
    except ValueError as error:
        rank_zero_warn(f"EndTimeSweep leaves out T = t1 {offset:+g}: {error}")
        return {}
    try:
        with end_time_offset_at(pl_module, offset):
            found = [pl_module.evaluate(batch) for batch in batches]  # type: ignore[operator]
    except SolverError as error:
        rank_zero_warn(f"EndTimeSweep leaves out T = t1 {offset:+g}: {error}")
        return {}
    names = [name for name in found[0] if name != "loss" or len(found[0]) == 1]
    weights = [_weight(pl_module, batch) for batch in batches]
    means = {
        # A batch whose weights are all zero has no mean.
        name: sum(w * float(m[name]) for w, m in zip(weights, found, strict=True) if w)
        / (sum(weights) or math.nan)
        for name in names
    }
    if counts:
        means["nfe_forward"] = (sum(s.nfe_forward for s in counts) - before) / len(found)
    return means


def _weight(pl_module: LightningModule, batch: Any) -> float:
    """What the mean over a batch counts for: its weights if it has some, or its samples."""
    of_loss = getattr(pl_module, "loss_weight", None)
    weight = None if of_loss is None else of_loss(batch)
    return float(extract_batch_size(batch) if weight is None else weight)
