"""Plots of irregular series: what was observed, what a model makes of it."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule

from steer_lightning.callbacks.plots.base import EVERY_N_CHECKS, EvaluationPlot, array
from steer_lightning.callbacks.plots.style import COLOURS, legend_below, panels
from steer_lightning.nn.series import SeriesBatch


class SeriesPlot(EvaluationPlot):
    """Reconstructed and extrapolated series, observed points filled and hidden ones hollow.

    The module must have a method ``predict_at(batch, times)`` that gives values ``(S, B, G, D)``
    at the times ``(B, G)``, as :class:`~steer_lightning.modules.LatentODEModule` and
    :class:`~steer_lightning.modules.ODERNNModule` have. Each draw is a curve, their mean a line;
    a dotted line marks the end of the data.

    Args:
        n_series: Series to draw, the first ones of the first batch, a column each.
        features: Numbers of the features to draw, a row each.
        extend: How far to draw past the last time, as a fraction of the time range.
        n_points: Points of a curve.
        every_n_checks: See :class:`.EvaluationPlot`.

    Raises:
        ValueError: If a number is out of range, or the data has no such feature.
        TypeError: Before the first batch, if the module has no method ``predict_at``.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 6.
    """

    name = "series"

    def __init__(
        self,
        n_series: int = 3,
        features: Sequence[int] = (0,),
        extend: float = 0.0,
        n_points: int = 200,
        every_n_checks: int = EVERY_N_CHECKS,
    ) -> None:
        super().__init__(every_n_checks)
        if n_series < 1 or n_points < 2 or not extend >= 0.0 or not features or min(features) < 0:
            raise ValueError(
                f"Expected n_series >= 1, n_points >= 2, extend >= 0 and one or more features >= "
                f"0, but got {n_series}, {n_points}, {extend} and {list(features)}."
            )
        self.n_series = n_series
        self.features = tuple(features)
        self.extend = extend
        self.n_points = n_points

    def check(self, pl_module: LightningModule) -> None:
        if not callable(getattr(pl_module, "predict_at", None)):
            raise TypeError(
                f"Expected a module with a method `predict_at(batch, times)`, but "
                f"{type(pl_module).__name__} has none. Leave SeriesPlot out."
            )
        n_features = getattr(getattr(pl_module, "network", None), "n_features", None)
        if n_features is not None:
            self._check_features(n_features)

    def _check_features(self, n_features: int) -> None:
        if max(self.features) >= n_features:
            raise ValueError(
                f"Expected features below {n_features}, which the data has, but got "
                f"{list(self.features)}."
            )

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        self._check_features(batch.values.shape[2])
        some = SeriesBatch(*(part[: self.n_series] for part in batch))
        first, last = some.times[:, :1], some.times[:, -1:]
        share = torch.linspace(0.0, 1.0 + self.extend, self.n_points, device=first.device)
        times = first + share.to(first) * (last - first)
        draws = pl_module.predict_at(some, times)  # type: ignore[operator]
        n_rows, n_columns = len(self.features), len(times)
        size = 3.6 * n_columns, 2.6 * n_rows
        figure, axes = panels(n_rows, n_columns, size, sharex="col")
        curve, point = COLOURS[:2]
        for row, feature in zip(axes, self.features, strict=True):
            row[0].set_ylabel(f"feature {feature}, as the model sees it")
            for i, axis in enumerate(row):
                t, curves = array(times[i]), array(draws[:, i, :, feature])
                axis.plot(t, curves.T, color=curve, lw=0.6, alpha=0.5)
                axis.plot(t, curves.mean(0), color=curve, label="predicted")
                seen = some.mask[i, :, feature] > 0
                hidden = (some.target_mask[i, :, feature] > 0) & ~seen
                for name, points, face in (("observed", seen, point), ("hidden", hidden, "none")):
                    axis.scatter(
                        array(some.times[i, points]), array(some.values[i, points, feature]),
                        s=12, facecolors=face, edgecolors=point, lw=0.7, label=name, zorder=3,
                    )  # fmt: skip
                axis.axvline(float(last[i]), color="grey", lw=0.6, ls=":", label="end of the data")
        for axis in axes[-1]:
            axis.set_xlabel("time t, as the data counts it")
        legend_below(figure)
        return figure
