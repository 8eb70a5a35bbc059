"""A plot of flows in one and two dimensions."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule
from torch import Tensor

from steer_lightning.callbacks.plots.base import Array, EvaluationPlot, array
from steer_lightning.callbacks.plots.style import legend_below, panels
from steer_lightning.nn import CNF
from steer_lightning.utils.seeding import stream


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


def _density(flow: CNF, x: Tensor, t: float) -> Tensor:
    """By an estimated trace, with the same noise each time and not that of the global stream."""
    return flow.log_prob(x, float(t), generator=stream(x.device, "flow plot")).exp()


def _actual(flow: CNF, t: float) -> float:
    """Where a nominal time lies on the span that is solved, whose end may be learned."""
    t0, t1 = flow.horizon.t0, flow.horizon.t1
    return float(t0 + (t - t0) * (flow.horizon.end_time - t0) / (t1 - t0))


def _plot_flow_1d(flow: CNF, data: Array, weights: Array | None) -> Figure:
    """Density from base to data against time, with particle paths; then the end of it."""
    like, limit = next(flow.parameters()), 7.0
    x = torch.linspace(-limit, limit, 241).to(like)[:, None]
    times = np.linspace(flow.base_time, flow.data_time, 41)
    density = torch.stack([_density(flow, x, t) for t in times])
    z = torch.special.ndtri(torch.linspace(0.02, 0.98, 30, dtype=torch.float64))
    noise = stream(like.device, "flow plot")
    t_eval = torch.as_tensor(times).to(like)
    paths, _ = flow.trajectories(z.to(like)[:, None], t_eval, generator=noise)
    times = np.array([_actual(flow, t) for t in times])
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
        density = _density(flow, grid, t).reshape(n_points, n_points)
        actual = _actual(flow, t)
        field = flow.vector_field(like.new_tensor(actual), arrows)
        axis.imshow(array(density).T, origin="lower", extent=(-limit, limit, -limit, limit))
        axis.quiver(*array(arrows).T, *array(field).T, color="white", alpha=0.6, width=0.004)
        axis.set(title=f"t = {actual:.2f}", aspect="equal", xlabel="first coordinate")
    first, second = data.T
    bounds = ((-limit, limit),) * 2
    axes[-1].hist2d(first, second, n_points, range=bounds, weights=weights, rasterized=True)
    axes[-1].set(title="data", aspect="equal", xlabel="first coordinate")
    axes[0].set_ylabel("second coordinate")
    return figure
