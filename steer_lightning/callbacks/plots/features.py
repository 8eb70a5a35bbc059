"""A plot of features on their way through time."""

import math
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.callbacks.plots.base import EVERY_N_CHECKS, EvaluationPlot, array
from steer_lightning.callbacks.plots.style import COLOURS, legend_below, panels
from steer_lightning.horizon import SpanHorizon
from steer_lightning.solvers import SolverError


class FeaturePlot(EvaluationPlot):
    r"""Features of one batch from ``t0`` to ``t1 + b``, in the plane in which they differ most.

    The plane holds the mean of the features at ``t1`` and their first two principal components
    there; features at other times are projected onto it. If the answer is there by ``t1 - b``, as
    the paper's Figure 2 claims, the paths of different classes have parted by then.

    The module needs a method ``trajectories(x, t_eval)``, as
    :class:`~steer_lightning.modules.ClassifierModule` has, and its batches are tuples of inputs
    and targets; whole numbers are taken for classes. Where the model cannot be solved beyond
    ``t1``, the paths end there.

    Args:
        b: How far beyond ``t1`` to look, and the end time ``t1 - b`` to mark, in units of time.
        n_samples: Largest number of samples to follow.
        n_times: Number of times from ``t0`` to ``t1``, and about as dense after it.
        every_n_checks: See :class:`.EvaluationPlot`.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If the module has no ``trajectories``, or no span to follow.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 2; Dupont et al., *Augmented
        Neural ODEs*, NeurIPS 2019, arXiv:1904.01681, Figure 4.
    """

    name = "features"

    def __init__(
        self,
        b: float = 0.0,
        n_samples: int = 100,
        n_times: int = 20,
        every_n_checks: int = EVERY_N_CHECKS,
    ) -> None:
        super().__init__(every_n_checks)
        if not b >= 0 or n_samples < 3 or n_times < 2:
            raise ValueError(
                f"Expected b >= 0, n_samples >= 3 and n_times >= 2, but got b = {b}, n_samples = "
                f"{n_samples}, n_times = {n_times}."
            )
        self.b = b
        self.n_samples = n_samples
        self.n_times = n_times

    def check(self, pl_module: LightningModule) -> None:
        spans = [m for m in pl_module.modules() if isinstance(m, SpanHorizon)]
        if not callable(getattr(pl_module, "trajectories", None)) or not spans:
            raise TypeError(
                f"Expected a module with a method `trajectories(x, t_eval)` and a block with a "
                f"span, but got {type(pl_module).__name__}. Leave FeaturePlot out."
            )

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        x, targets = (part[: self.n_samples] for part in batch[:2])
        horizon = next(m for m in pl_module.modules() if isinstance(m, SpanHorizon))
        t0, t1 = horizon.t0, horizon.end_time
        b = math.copysign(self.b, t1 - t0)
        n_after = 1 + math.ceil((self.n_times - 1) * abs(b / (t1 - t0)))
        until, after = torch.linspace(t0, t1, self.n_times), torch.linspace(t1, t1 + b, n_after)
        t = torch.cat([until, after[1:]]).to(x.device)
        nominal = t0 + (t - t0) * ((horizon.t1 - t0) / (t1 - t0))  # a learned t1 is another
        try:
            features = pl_module.trajectories(x, nominal)  # type: ignore[operator]
        except SolverError as error:
            rank_zero_warn(f"FeaturePlot ends at t1: {error}")
            t = t[: self.n_times]
            features = pl_module.trajectories(x, nominal[: self.n_times])  # type: ignore[operator]
        features = features.flatten(2)
        at_end = self.n_times - 1
        paths = array(principal_components(features, features[at_end]))
        numbers = array(targets.reshape(len(targets), -1)[:, 0])
        few = not targets.is_floating_point() and numbers.max() < 10
        colours = ListedColormap(COLOURS) if few else colormaps["viridis"]
        scale = Normalize(0, 9) if few else Normalize(numbers.min(), numbers.max())
        figure, [[left, right]] = panels(1, 2, (9, 3.6))
        for path, value in zip(paths.swapaxes(0, 1), numbers, strict=True):
            colour = colours(scale(value))
            left.plot(*path.T, color=colour, lw=0.6, alpha=0.6)
            right.plot(array(t), path[:, 0], color=colour, lw=0.6, alpha=0.6)
        first, second = paths[at_end].T
        left.scatter(first, second, c=colours(scale(numbers)), s=12, zorder=3)
        left.set(title="features up to t1 + b, dots at t1", ylabel="second component at t1")
        for time, name in {t1 - b: "t1 - b", t1: "t1"}.items():
            right.axvline(time, color="grey", ls=":" if name == "t1" else "--", label=name)
        right.set(title="the same against time", xlabel="time t", ylabel="first component at t1")
        left.set_xlabel("first component at t1")
        for number in sorted(set(numbers)) if few else ():
            left.scatter([], [], color=colours(scale(number)), s=12, label=f"class {number:g}")
        if not few:
            shades = ScalarMappable(scale, colours)
            figure.colorbar(shades, ax=[left, right], label="target")
        legend_below(figure, columns=6)
        return figure


def principal_components(x: Tensor, reference: Tensor) -> Tensor:
    """Coordinates ``(..., 2)`` of points ``(..., D)`` along principal components of a reference.

    They are the first two of the reference's points, ``(N, D)``; a second one that is not there
    gives zero. The largest weight of a component is positive. NaN if the reference is not finite.
    """
    if not bool(reference.isfinite().all()):
        return x.new_full((*x.shape[:-1], 2), torch.nan)
    mean = reference.mean(0)
    axes = torch.linalg.svd(reference - mean, full_matrices=False).Vh[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    coordinates = (x - mean) @ (axes * largest.sign()).T
    return F.pad(coordinates, (0, 2 - coordinates.shape[-1]))
