"""Plots in every logger that takes them, and as PNG and SVG files beside the logs."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.callbacks.plots.style import save_figure
from steer_lightning.solvers import SolverError
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.representation import Shown


def save_plot(trainer: Trainer, figure: Figure, name: str, folder: Path) -> Path:
    """Write a figure as PNG and SVG, and to the loggers, under one name; returns the PNG."""
    path = folder / f"{name}.png"
    if leaves_files(trainer):
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    for logger in trainer.loggers:
        log_figure(logger, figure, name, trainer.global_step)
    return path


def log_figure(logger: Any, figure: Figure, name: str, step: int) -> None:
    """Give a figure to a logger that takes figures, as TensorBoard's, W&B's and MLflow's do."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        logger.log_image(name, [figure], step)
    elif is_lightning(logger, "loggers", "MLFlowLogger"):
        experiment.log_figure(logger.run_id, figure, f"plots/{name}/{step:08d}.png")
    elif hasattr(experiment, "add_figure"):
        experiment.add_figure(name, figure, global_step=step)
    elif hasattr(experiment, "log_figure"):
        experiment.log_figure(name, figure, step=step)


Array = NDArray[np.float64]


def array(x: Tensor) -> Array:
    """A tensor in float64 on the CPU, for matplotlib."""
    return np.asarray(x.detach().cpu().double())


EVERY_N_CHECKS = 5  # a plot of a flow costs as much as a fifth of a small epoch


class EvaluationPlot(Shown, Callback):
    """Base of plots drawn from the batches of validation and test.

    Each plot replaces the file of the one before; loggers keep them all. Of several loaders the
    first is shown. In a list of callbacks plots belong before one that averages weights, whose
    weights they then show, as metrics do.

    Args:
        every_n_checks: Draw after every n-th validation of a fit, counted anew after a resume;
            after every test, and every validation without one.

    Raises:
        ValueError: If ``every_n_checks < 1``.
    """

    name = "plot"

    def __init__(self, every_n_checks: int = EVERY_N_CHECKS) -> None:
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
        if batch_idx == 0 and dataloader_idx == 0:
            self._batch = batch

    on_validation_start = on_test_start = on_fit_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._checks += 1
        if self._checks % self.every_n_checks == 0 or trainer.state.fn != TrainerFn.FITTING:
            self._save(trainer, pl_module, f"{self.name}_val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._save(trainer, pl_module, f"{self.name}_test")
        if leaves_files(trainer):
            rank_zero_info(f"Plot: {path}")

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> Path:
        folder = run_folder(trainer) / "plots"  # asked for on every rank
        batch, self._batch = self._batch, None
        if trainer.is_global_zero:
            try:
                save_plot(trainer, self.draw(pl_module, batch), name, folder)
            except SolverError as error:  # away from the data, say, where nobody trains it
                rank_zero_warn(f"{type(self).__name__} draws nothing this time: {error}")
        return folder / f"{name}.png"
