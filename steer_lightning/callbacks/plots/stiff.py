"""A plot of a trajectory, predicted and true."""

from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning import LightningModule

from steer_lightning.callbacks.plots.base import EvaluationPlot, array
from steer_lightning.callbacks.plots.style import legend_below, panels


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
            if times.min() >= 0.0 and times[-1] > 1e4 * times[times > 0.0].min():
                axis.set_xscale("log")
        if dim == 2:
            axes[2].plot(*true.T, color="black")
            axes[2].plot(*predicted.T, ls="--")
            axes[2].set(xlabel="state $y_1$", ylabel="state $y_2$")
        legend_below(figure)
        return figure
