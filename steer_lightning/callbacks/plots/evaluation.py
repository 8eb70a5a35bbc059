"""Plots in TensorBoard, and as PNG files beside the logs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from steer_lightning.callbacks.folders import run_folder
from steer_lightning.callbacks.plots.figures import FLOW_PLOTS, plot_trajectory
from steer_lightning.nn import CNF


def plots_folder(trainer: Trainer) -> Path:
    """Where a run's plots go; to be asked for on every rank."""
    return run_folder(trainer) / "plots"


def save_plot(trainer: Trainer, figure: Figure, name: str, folder: Path) -> Path:
    """Write a figure as a PNG file and to TensorBoard, under one name; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=trainer.global_step)
    return path


class EvaluationPlot(Callback):
    """Base of plots drawn from the batches of validation and test.

    Each plot replaces the file of the one before; TensorBoard keeps them all.

    Args:
        every_n_checks: Draw after every n-th validation; after every test.

    Raises:
        ValueError: If ``every_n_checks < 1``.
    """

    name = "plot"

    def __init__(self, every_n_checks: int = 1) -> None:
        if every_n_checks < 1:
            raise ValueError(f"Expected `every_n_checks` >= 1, but got {every_n_checks}.")
        self.every_n_checks = every_n_checks
        self._checks = 0
        self._batch: Any = None

    def check(self, pl_module: LightningModule) -> None:
        """Raise if no plot can be drawn of the module; asked before the first batch."""

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        """The figure, from the first batch; called without gradients, in eval mode."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        if batch_idx == 0:
            self._batch = batch

    on_validation_start = on_test_start = on_fit_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._checks += 1
        if self._checks % self.every_n_checks == 0:
            self._save(trainer, pl_module, f"{self.name}_val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._save(trainer, pl_module, f"{self.name}_test")
        rank_zero_info(f"Plot: {path}")

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> Path:
        folder = plots_folder(trainer)
        if trainer.is_global_zero:
            save_plot(trainer, self.draw(pl_module, self._batch), name, folder)
        self._batch = None
        return folder / f"{name}.png"


class FlowPlot(EvaluationPlot):
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
        _flow_and_plotter(pl_module)

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        flow, plot = _flow_and_plotter(pl_module)
        points = (batch,) if isinstance(batch, Tensor) else batch[:2]
        return plot(flow, *points)


class StiffPlot(EvaluationPlot):
    """Predicted against true trajectory, for modules that map ``(y0, t)`` to states.

    Args:
        every_n_checks: Draw after every n-th validation; after every test.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 4.
    """

    name = "trajectory"

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        t, y = batch
        return plot_trajectory(t, y, {"predicted": pl_module(y[0], t)})


def _flow_and_plotter(pl_module: LightningModule) -> tuple[CNF, Callable[..., Figure]]:
    flow = getattr(pl_module, "flow", None)
    plot = FLOW_PLOTS.get(tuple(flow.event_shape)) if isinstance(flow, CNF) else None
    if plot is None or not isinstance(flow, CNF):
        raise TypeError(
            f"Expected a module with a CNF of one or two dimensions as `flow`, but got "
            f"{type(pl_module).__name__}. Leave FlowPlot out."
        )
    return flow, plot
