"""Pictures in TensorBoard, and as PNG files beside the logs."""

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from steer_lightning.functional.choices import check_choice
from steer_lightning.horizon import SpanHorizon
from steer_lightning.nn import CNF
from steer_lightning.plotting import flow_plotter, plot_sweep, plot_trajectory
from steer_lightning.solvers import SolverError, TorchdiffeqSolver
from steer_lightning.steering import end_time_offset_at


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go; to be asked for on every rank, as the ranks agree on it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def pictures_folder(trainer: Trainer) -> Path:
    """Where a run's pictures go; to be asked for on every rank."""
    return run_folder(trainer) / "pictures"


def save_picture(trainer: Trainer, figure: Figure, name: str, folder: Path) -> Path:
    """Write a figure as a PNG file and to TensorBoard, under one name; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=trainer.global_step)
    return path


class EvaluationPicture(Callback):
    """Base of pictures drawn from the batches of validation and test.

    Each picture replaces the file of the one before; TensorBoard keeps them all.

    Args:
        every_n_checks: Draw after every n-th validation; after every test.

    Raises:
        ValueError: If ``every_n_checks < 1``.
    """

    name = "picture"

    def __init__(self, every_n_checks: int = 1) -> None:
        if every_n_checks < 1:
            raise ValueError(f"Expected `every_n_checks` >= 1, but got {every_n_checks}.")
        self.every_n_checks = every_n_checks
        self._checks = 0
        self._batch: Any = None

    def check(self, pl_module: LightningModule) -> None:
        """Raise if no picture can be drawn of the module; asked before the first batch."""

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        """The figure, from the first batch; called without gradients, in eval mode."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong model before it is trained."""
        self.check(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong model."""
        self.check(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong model."""
        self.check(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first batch."""
        if batch_idx == 0:
            self._batch = batch

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first batch."""
        if batch_idx == 0:
            self._batch = batch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless this is the sanity check or not yet due."""
        if trainer.sanity_checking:
            return
        self._checks += 1
        if self._checks % self.every_n_checks == 0:
            self._save(trainer, pl_module, f"{self.name}_val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        path = self._save(trainer, pl_module, f"{self.name}_test")
        rank_zero_info(f"Picture: {path}")

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> Path:
        folder = pictures_folder(trainer)
        if trainer.is_global_zero:
            save_picture(trainer, self.draw(pl_module, self._batch), name, folder)
        self._batch = None
        return folder / f"{name}.png"


class FlowPicture(EvaluationPicture):
    """Flow field, transported density and data, for one- and two-dimensional flows.

    The module must hold a :class:`~steer_lightning.nn.CNF` as ``flow``, and its batches points or
    tuples whose first entry is points.

    Args:
        every_n_checks: Draw after every n-th validation; after every test.

    Raises:
        TypeError: If the module holds no flow that can be drawn.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figures 1 and 3.
    """

    name = "flow"

    def check(self, pl_module: LightningModule) -> None:
        """Raise a ``TypeError`` if there is no flow that can be drawn."""
        _flow_and_plotter(pl_module)

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        """The figure of the dimension at hand."""
        flow, plot = _flow_and_plotter(pl_module)
        points = (batch,) if isinstance(batch, Tensor) else batch[:2]
        return plot(flow, *points)


class StiffPicture(EvaluationPicture):
    """Predicted against true trajectory, for modules that map ``(y0, t)`` to states.

    Args:
        every_n_checks: Draw after every n-th validation; after every test.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 4.
    """

    name = "trajectory"

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        """The figure of a batch ``(t, y)``."""
        t, y = batch
        return plot_trajectory(t, y, {"predicted": pl_module(y[0], t)})


class EndTimeSweep(Callback):
    r"""A trained model's metrics against the end time it is *evaluated* at, t1 - b .. t1 + b.

    The module's ``evaluate(batch)`` gives its metrics. Drawn once: at the end of training from
    training or validation batches, or at the end of a test from test batches. The numbers are
    written as CSV beside the picture. Far from its own end time a model can be stiff: an end time
    at which a solve fails, or needs more than ``max_nfe`` evaluations, gives NaN, a gap in the
    picture.

    Args:
        b: Half-width of the sweep, in units of time.
        n_points: Number of end times.
        n_batches: Number of batches for each.
        split: Where the batches come from.
        max_nfe: Largest number of evaluations of a vector field in one solve of the sweep.

    Raises:
        ValueError: If a number is out of range or ``split`` is unknown; before the first batch if
            the model has no span or ``b`` reaches ``t0``.
        TypeError: Before the first batch, if the module has no method ``evaluate``.
    """

    def __init__(
        self,
        b: float,
        n_points: int = 11,
        n_batches: int = 1,
        split: Literal["train", "val", "test"] = "test",
        max_nfe: int = 1000,
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong model before it is trained."""
        if self.split != "test":
            self._check(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong model."""
        if self.split == "test":
            self._check(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep over training or validation batches."""
        if self.split != "test":
            loader = trainer.train_dataloader if self.split == "train" else trainer.val_dataloaders
            self._sweep(trainer, pl_module, loader)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep over test batches."""
        if self.split == "test":
            self._sweep(trainer, pl_module, trainer.test_dataloaders)

    def _check(self, pl_module: LightningModule) -> None:
        if not callable(getattr(pl_module, "evaluate", None)):
            raise TypeError(
                f"Expected a module with a method `evaluate(batch)` that gives its metrics, but "
                f"{type(pl_module).__name__} has none. Add it, or leave EndTimeSweep out."
            )
        for offset in (-self.b, self.b):
            with end_time_offset_at(pl_module, offset):
                pass

    def _sweep(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> None:
        if loader is None:
            raise ValueError(
                f"Expected {self.split} batches to sweep over, but got none. Give the Trainer "
                f"{self.split} data, or EndTimeSweep another split."
            )
        folder = pictures_folder(trainer)
        if not trainer.is_global_zero:
            return
        batches = [
            trainer.strategy.batch_to_device(batch) for batch in islice(loader, self.n_batches)
        ]
        t1 = next(m.end_time for m in pl_module.modules() if isinstance(m, SpanHorizon))
        offsets = torch.linspace(-self.b, self.b, self.n_points, dtype=torch.float64).tolist()
        training = pl_module.training
        pl_module.eval()
        try:
            with torch.no_grad(), _nfe_budget(pl_module, self.max_nfe):
                rows = [_mean_metrics(pl_module, offset, batches) for offset in offsets]
        finally:
            pl_module.train(training)
        end_times = [t1 + offset for offset in offsets]
        names = max(rows, key=len)
        if not names:  # every solve failed, and each has been warned of
            return
        metrics = {name: [row.get(name, float("nan")) for row in rows] for name in names}
        name = f"end_time_sweep_{self.split}"
        path = save_picture(trainer, plot_sweep(end_times, metrics, t1), name, folder)
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["end_time", *metrics])
            writer.writerows(zip(end_times, *metrics.values(), strict=True))
        rank_zero_info(f"Picture: {path}")


def _flow_and_plotter(pl_module: LightningModule) -> tuple[CNF, Callable[..., Figure]]:
    flow = getattr(pl_module, "flow", None)
    plot = flow_plotter(flow.event_shape) if isinstance(flow, CNF) else None
    if plot is None or not isinstance(flow, CNF):
        raise TypeError(
            f"Expected a module with a CNF of one or two dimensions as `flow`, but got "
            f"{type(pl_module).__name__}. Leave FlowPicture out."
        )
    return flow, plot


@contextmanager
def _nfe_budget(model: nn.Module, max_nfe: int) -> Iterator[None]:
    """Lower the budget of every solver in a model."""
    solvers = [
        getattr(module, name, None)
        for module in model.modules()
        for name in ("solver", "eval_solver")
    ]
    budgets = {s: s.max_nfe for s in solvers if isinstance(s, TorchdiffeqSolver)}
    try:
        for solver, budget in budgets.items():
            solver.max_nfe = max_nfe if budget is None else min(budget, max_nfe)
        yield
    finally:
        for solver, budget in budgets.items():
            solver.max_nfe = budget


def _mean_metrics(
    pl_module: LightningModule, offset: float, batches: Iterable[Any]
) -> dict[str, float]:
    """Mean metrics at one end time; empty if a solve failed."""
    try:
        with end_time_offset_at(pl_module, offset):
            found = [pl_module.evaluate(batch) for batch in batches]  # type: ignore[operator]
    except SolverError as error:
        rank_zero_warn(f"EndTimeSweep leaves out T = t1 {offset:+g}: {error}")
        return {}
    names = [name for name in found[0] if name != "loss" or len(found[0]) == 1]
    return {name: float(torch.stack([m[name] for m in found]).mean()) for name in names}
