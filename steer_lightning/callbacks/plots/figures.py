"""Figures of flows, trajectories and sweeps, without global state."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.nn import CNF
from steer_lightning.nn.series import SeriesBatch

Array = NDArray[np.float64]


def plot_flow_1d(
    flow: CNF,
    data: Tensor,
    weight: Tensor | None = None,
    limit: float = 7.0,
    n_times: int = 41,
    n_points: int = 241,
    n_paths: int = 30,
) -> Figure:
    """Density carried from base to data against time, with particle paths; then the end of it.

    Args:
        flow: A flow with ``event_shape == (1,)``.
        data: Points to compare with, shape ``(N, 1)``.
        weight: Weights of the points, shape ``(N,)``.
        limit: Half-width of the plot.
        n_times: Number of times.
        n_points: Number of points across.
        n_paths: Number of particle paths.
    """
    like = next(flow.parameters())
    x = torch.linspace(-limit, limit, n_points).to(like)[:, None]
    times = np.linspace(flow.base_time, flow.data_time, n_times)
    with torch.no_grad():
        density = torch.stack([flow.log_prob(x, float(t)).exp() for t in times])
        z = torch.special.ndtri(torch.linspace(0.02, 0.98, n_paths, dtype=torch.float64))
        paths, _ = flow.trajectories(z.to(like)[:, None], torch.as_tensor(times).to(like))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.pcolormesh(times, _array(x[:, 0]), _array(density).T, cmap="viridis", shading="gouraud")
    left.plot(times, _array(paths[..., 0]), color="white", lw=0.6, alpha=0.7)
    left.set(xlabel="t, from base to data", ylabel="x", title="density and particle paths")
    right.plot(_array(density[-1]), _array(x[:, 0]), label="model")
    right.hist(
        _array(data.reshape(-1)), weights=None if weight is None else _array(weight), bins=100,
        range=(-limit, limit), density=True, orientation="horizontal", alpha=0.4, label="data",
    )  # fmt: skip
    right.set(xlabel="density at the data", ylim=(-limit, limit))
    right.legend(loc="lower right")
    return figure


def plot_flow_2d(
    flow: CNF,
    data: Tensor,
    weight: Tensor | None = None,
    limit: float = 4.0,
    n_times: int = 4,
    n_points: int = 80,
) -> Figure:
    """Flow field over transported density at several times, beside the data.

    Args:
        flow: A flow with ``event_shape == (2,)``.
        data: Points to compare with, shape ``(N, 2)``.
        weight: Weights of the points, shape ``(N,)``.
        limit: Half-width of the plot.
        n_times: Number of times from base to data.
        n_points: Points along each side.
    """
    like = next(flow.parameters())
    side = torch.linspace(-limit, limit, n_points).to(like)
    grid = torch.cartesian_prod(side, side)
    arrow_side = torch.linspace(-limit, limit, 17).to(like)
    arrows = torch.cartesian_prod(arrow_side, arrow_side)
    figure = Figure(figsize=(2.6 * (n_times + 1), 2.9), layout="constrained")
    axes = figure.subplots(1, n_times + 1, sharex=True, sharey=True)
    for axis, t in zip(axes, np.linspace(flow.base_time, flow.data_time, n_times), strict=False):
        with torch.no_grad():
            density = flow.log_prob(grid, float(t)).exp().reshape(n_points, n_points)
            field = flow.vector_field(like.new_tensor(float(t)), arrows)
        axis.imshow(_array(density).T, origin="lower", extent=(-limit, limit, -limit, limit))
        axis.quiver(*_array(arrows).T, *_array(field).T, color="white", alpha=0.6, width=0.004)
        axis.set(title=f"t = {t:.2f}", aspect="equal")
    weights = None if weight is None else _array(weight)
    axes[-1].hist2d(*_array(data).T, n_points, range=((-limit, limit),) * 2, weights=weights)
    axes[-1].set(title="data", aspect="equal")
    return figure


def plot_trajectory(t: Tensor, true: Tensor, predicted: Mapping[str, Tensor]) -> Figure:
    """True against predicted trajectories.

    Args:
        t: Times, shape ``(T,)``.
        true: True states, shape ``(T, D)``.
        predicted: Predicted states by label, each ``(T, D)``.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(_array(t), _array(true), color="black", label="true")
    for label, states in predicted.items():
        axis.plot(_array(t), _array(states), ls="--", label=label)
    axis.set(xlabel="t", ylabel="y")
    axis.legend(loc="lower right")
    return figure


def plot_series(
    batch: SeriesBatch,
    times: Tensor,
    draws: Tensor,
    features: Sequence[int] = (0,),
) -> Figure:
    """Predicted curves over observed and hidden points, a row for each feature.

    Args:
        batch: Series, ``B`` of them, one a column.
        times: Times of the curves, shape ``(B, G)``.
        draws: Predicted values, shape ``(S, B, G, D)``; each draw is a curve, their mean a line.
        features: Numbers of the features to draw.
    """
    n_series = len(batch.times)
    figure = Figure(figsize=(3.6 * n_series, 2.6 * len(features)), layout="constrained")
    axes = figure.subplots(len(features), n_series, squeeze=False, sharex="col")
    for row, feature in zip(axes, features, strict=True):
        for i, axis in enumerate(row):
            for draw in draws[:, i, :, feature]:
                axis.plot(_array(times[i]), _array(draw), color="C0", lw=0.6, alpha=0.5)
            mean = draws[:, i, :, feature].mean(0)
            axis.plot(_array(times[i]), _array(mean), color="C0", label="predicted")
            seen = batch.mask[i, :, feature] > 0
            hidden = (batch.target_mask[i, :, feature] > 0) & ~seen
            for name, points, face in (("observed", seen, "C1"), ("hidden", hidden, "none")):
                axis.scatter(
                    _array(batch.times[i, points]), _array(batch.values[i, points, feature]),
                    s=12, facecolors=face, edgecolors="C1", lw=0.7, label=name, zorder=3,
                )  # fmt: skip
            axis.axvline(float(batch.times[i, -1]), color="grey", lw=0.6, ls=":")
            axis.set(
                xlabel="t" if row is axes[-1] else "", ylabel="" if i else f"feature {feature}"
            )
    for axis in axes[-1]:
        axis.set_xlabel("t")
    axes[0, 0].legend(loc="upper left", fontsize=7)
    return figure


def plot_images(rows: Mapping[str, Tensor]) -> Figure:
    """Rows of images, labelled.

    Args:
        rows: Images by label, each ``(N, C, H, W)`` in [0, 1], with one or three channels.
    """
    n = max(map(len, rows.values()))
    figure = Figure(figsize=(0.62 * n + 0.4, 0.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axis, (label, images) in zip(axes, rows.items(), strict=True):
        framed = F.pad(images, (1, 1, 1, 1), value=1.0)
        axis.imshow(_array(torch.cat(list(framed), dim=2).movedim(0, -1)), "gray", vmin=0, vmax=1)
        axis.set_title(label, loc="left", fontsize=8)
        axis.axis("off")
    return figure


def plot_sweep(
    end_times: Sequence[float], metrics: Mapping[str, Sequence[float]], t1: float
) -> Figure:
    """Metrics of a trained model against the end time it is evaluated at.

    Args:
        end_times: Evaluation end times.
        metrics: Values by name, one for each end time.
        t1: The nominal end time, marked.
    """
    figure = Figure(figsize=(4.2 * len(metrics), 3.4), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, (name, values) in zip(axes, metrics.items(), strict=True):
        axis.plot(end_times, values, marker="o", ms=3)
        axis.axvline(t1, color="grey", ls=":", label="t1")
        axis.set(xlabel="evaluation end time T", ylabel=name)
        axis.legend(loc="lower right")
    return figure


def plot_features(
    t: Tensor, features: Tensor, targets: Tensor, at_end: int, b: float = 0.0
) -> Figure:
    """Paths of features in the plane of their principal components at ``t1``, and against time.

    Args:
        t: Times, shape ``(T,)``.
        features: Features, shape ``(T, B, D)``.
        targets: Classes as whole numbers, or numbers to be told apart by colour, shape ``(B,)``
            or ``(B, 1)``.
        at_end: Index of ``t1`` among the times.
        b: Mark ``t1 - b`` too.
    """
    paths = _array(principal_components(features, features[at_end]))
    targets = targets.reshape(len(targets), -1)[:, 0]
    classes = not targets.is_floating_point()
    low, high = _array(targets).min(), _array(targets).max()
    colours = colormaps["tab10" if classes and high < 10 else "viridis"]
    scale = Normalize(0, 9) if classes and high < 10 else Normalize(low, high)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for path, value in zip(paths.swapaxes(0, 1), _array(targets), strict=True):
        colour = colours(scale(value))
        left.plot(*path.T, color=colour, lw=0.6, alpha=0.6)
        right.plot(_array(t), path[:, 0], color=colour, lw=0.6, alpha=0.6)
    left.scatter(*paths[at_end].T, c=colours(scale(_array(targets))), s=12, label="t1", zorder=3)
    left.set(xlabel="first component at t1", ylabel="second component", title="features to t1 + b")
    left.legend(loc="upper left")
    t1 = float(t[at_end])
    for time, name in {t1 - b: "t1 - b", t1: "t1"}.items():
        right.axvline(time, color="grey", ls=":" if name == "t1" else "--", label=name)
    right.set(xlabel="t", ylabel="first component at t1", title="the same against time")
    right.legend(loc="upper left")
    return figure


def principal_components(x: Tensor, reference: Tensor) -> Tensor:
    """Coordinates of points along the first two principal components of others.

    Args:
        x: Points, shape ``(..., D)``.
        reference: The points whose components are taken, shape ``(N, D)``.

    Returns:
        Coordinates, shape ``(..., 2)``, the second zero if there is no second component. Signs
        are chosen so that the largest weight of a component is positive.
    """
    mean = reference.mean(0)
    _, _, axes = torch.linalg.svd(reference - mean, full_matrices=False)
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    coordinates = (x - mean) @ (axes * largest.sign()).T
    return F.pad(coordinates, (0, 2 - coordinates.shape[-1]))


FLOW_PLOTS: dict[tuple[int, ...], Callable[..., Figure]] = {(1,): plot_flow_1d, (2,): plot_flow_2d}


def _array(x: Tensor) -> Array:
    return np.asarray(x.detach().cpu().double())
