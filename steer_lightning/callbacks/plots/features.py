"""A plot of features on their way through time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from steer_lightning.callbacks.plots.evaluation import EvaluationPlot
from steer_lightning.callbacks.plots.figures import plot_features
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
        every_n_checks: Draw after every n-th validation; after every test.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If the module has no ``trajectories``, or no span to follow.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 2; Dupont et al., *Augmented
        Neural ODEs*, NeurIPS 2019, arXiv:1904.01681, Figure 4.
    """

    name = "features"

    def __init__(
        self, b: float = 0.0, n_samples: int = 100, n_times: int = 20, every_n_checks: int = 1
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
        if not callable(getattr(pl_module, "trajectories", None)) or not _spans(pl_module):
            raise TypeError(
                f"Expected a module with a method `trajectories(x, t_eval)` and a block with a "
                f"span, but got {type(pl_module).__name__}. Leave FeaturePlot out."
            )

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        x, targets = (part[: self.n_samples] for part in batch[:2])
        horizon = _spans(pl_module)[0]
        gap = horizon.end_time - horizon.t0
        b = math.copysign(self.b, gap)
        n_after = 1 + math.ceil((self.n_times - 1) * abs(b / gap))
        until = torch.linspace(horizon.t0, horizon.end_time, self.n_times)
        after = torch.linspace(horizon.end_time, horizon.end_time + b, n_after)
        t_eval = torch.cat([until, after[1:]]).to(x.device)
        follow: Callable[..., Tensor] = pl_module.trajectories  # type: ignore[assignment]
        try:
            features = follow(x, t_eval)
        except SolverError as error:
            rank_zero_warn(f"FeaturePlot ends at t1: {error}")
            t_eval = t_eval[: len(until)]
            features = follow(x, t_eval)
        return plot_features(t_eval, features.flatten(2), targets, len(until) - 1, b)


def _spans(pl_module: LightningModule) -> list[SpanHorizon]:
    return [module for module in pl_module.modules() if isinstance(module, SpanHorizon)]
