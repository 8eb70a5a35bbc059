"""Plots in every logger that takes them, and as PNG and SVG files beside the logs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from steer_lightning.callbacks.folders import leaves_files, run_folder
from steer_lightning.callbacks.plots.style import legend_below, panels, save_figure
from steer_lightning.nn import CNF
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

    Each plot replaces the file of the one before; loggers keep them all.

    Args:
        every_n_checks: Draw after every n-th validation of a fit; after every test, and every
            validation without one.

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
        if batch_idx == 0:
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


class FlowPlot(EvaluationPlot):
    """Flow field, transported density and data, for one- and two-dimensional flows.

    The module must hold a :class:`~steer_lightning.nn.CNF` as ``flow``, and its batches points or
    tuples of points and weights.

    Args:
        every_n_checks: See :class:`.EvaluationPlot`.

    Raises:
        TypeError: If the module holds no flow that can be drawn.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figures 1 and 3.
    """

    name = "flow"

    def check(self, pl_module: LightningModule) -> None:
        flow = getattr(pl_module, "flow", None)
        if not isinstance(flow, CNF) or flow.event_shape not in ((1,), (2,)):
            raise TypeError(
                f"Expected a module with a CNF of one or two dimensions as `flow`, but got "
                f"{type(pl_module).__name__}. Leave FlowPlot out."
            )

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        flow = pl_module.flow
        assert isinstance(flow, CNF)
        points, weight = (batch, None) if isinstance(batch, Tensor) else (*batch[:2], None)[:2]
        weights = None if weight is None else array(weight)
        plot = _plot_flow_1d if flow.event_shape == (1,) else _plot_flow_2d
        return plot(flow, array(points), weights)


class StiffPlot(EvaluationPlot):
    """Predicted against true trajectory, for modules that map ``(y0, t)`` to states.

    A panel for each component of the state, and the phase plane where there are two. The axis of
    time is logarithmic where the times behind 0 span more than four decades.

    Args:
        every_n_checks: See :class:`.EvaluationPlot`.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 4.
    """

    name = "trajectory"

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        t, y = batch
        times, true, predicted = array(t), array(y), array(pl_module(y[0], t))
        dim = true.shape[1]
        n_panels = 3 if dim == 2 else dim
        figure, [axes] = panels(1, n_panels, (6 if dim == 1 else 3.2 * n_panels, 3.4))
        for i, axis in enumerate(axes[:dim]):
            axis.plot(times, true[:, i], color="black", label="true")
            axis.plot(times, predicted[:, i], ls="--", label="predicted")
            axis.set(xlabel="time t", ylabel="state y(t)" if dim == 1 else f"state $y_{i + 1}(t)$")
            if times[-1] > 1e4 * times[times > 0.0].min():
                axis.set_xscale("log")
        if dim == 2:
            axes[2].plot(*true.T, color="black")
            axes[2].plot(*predicted.T, ls="--")
            axes[2].set(xlabel="state $y_1$", ylabel="state $y_2$")
        legend_below(figure)
        return figure


def _plot_flow_1d(flow: CNF, data: Array, weights: Array | None) -> Figure:
    """Density from base to data against time, with particle paths; then the end of it."""
    like, limit = next(flow.parameters()), 7.0
    x = torch.linspace(-limit, limit, 241).to(like)[:, None]
    times = np.linspace(flow.base_time, flow.data_time, 41)
    density = torch.stack([flow.log_prob(x, float(t)).exp() for t in times])
    z = torch.special.ndtri(torch.linspace(0.02, 0.98, 30, dtype=torch.float64))
    paths, _ = flow.trajectories(z.to(like)[:, None], torch.as_tensor(times).to(like))
    figure, [[left, right]] = panels(1, 2, (9, 3.4), width_ratios=(2, 1))
    left.pcolormesh(
        times, array(x[:, 0]), array(density).T,
        cmap="viridis", shading="gouraud", rasterized=True,
    )  # fmt: skip
    left.plot(times, array(paths[..., 0]), color="white", lw=0.6, alpha=0.7)
    left.set(xlabel="time t, from base to data", ylabel="x", title="density and particle paths")
    right.plot(array(density[-1]), array(x[:, 0]), label="model")
    right.hist(
        data.reshape(-1), weights=weights, bins=100, range=(-limit, limit),
        density=True, orientation="horizontal", alpha=0.4, label="data",
    )  # fmt: skip
    right.set(xlabel="density at the data", ylim=(-limit, limit))
    right.locator_params(axis="x", nbins=4)
    legend_below(figure)
    return figure


def _plot_flow_2d(flow: CNF, data: Array, weights: Array | None) -> Figure:
    """Flow field over transported density at four times from base to data, beside the data."""
    like, limit, n_times, n_points = next(flow.parameters()), 4.0, 4, 80
    side, arrow_side = (torch.linspace(-limit, limit, n).to(like) for n in (n_points, 17))
    grid, arrows = (torch.cartesian_prod(s, s) for s in (side, arrow_side))
    size = 2.6 * (n_times + 1), 3.2
    figure, [axes] = panels(1, n_times + 1, size, sharex=True, sharey=True)
    for axis, t in zip(axes, np.linspace(flow.base_time, flow.data_time, n_times), strict=False):
        density = flow.log_prob(grid, float(t)).exp().reshape(n_points, n_points)
        field = flow.vector_field(like.new_tensor(float(t)), arrows)
        axis.imshow(array(density).T, origin="lower", extent=(-limit, limit, -limit, limit))
        axis.quiver(*array(arrows).T, *array(field).T, color="white", alpha=0.6, width=0.004)
        axis.set(title=f"t = {t:.2f}", aspect="equal", xlabel="first coordinate")
    first, second = data.T
    bounds = ((-limit, limit),) * 2
    axes[-1].hist2d(first, second, n_points, range=bounds, weights=weights, rasterized=True)
    axes[-1].set(title="data", aspect="equal", xlabel="first coordinate")
    axes[0].set_ylabel("second coordinate")
    return figure
