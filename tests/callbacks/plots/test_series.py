import pytest
import torch
from pytorch_lightning import LightningModule

from steer_lightning.callbacks import SeriesPlot
from steer_lightning.nn.series import make_series


class Line(LightningModule):
    """Two draws of lines, one on each side of the identity."""

    def predict_at(self, batch, times):
        line = times[None, ..., None].repeat(1, 1, 1, 2)
        return torch.cat([line - 1.0, line + 1.0])


def three_series():
    times = [torch.tensor([0.0, 1.0, 4.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.0])]
    values = [t[:, None].repeat(1, 2) for t in times]
    masks = [torch.ones_like(x) for x in values]
    masks[0][1, 0] = 0.0
    return make_series(times, values, masks, [torch.ones_like(x) for x in values])


def test_curves_and_points_of_a_figure():
    figure = SeriesPlot(n_series=2, features=[0, 1], extend=0.25, n_points=6).draw(
        Line(), three_series()
    )
    axes = figure.axes
    assert len(axes) == 4
    low, high, mean, end = axes[0].lines
    assert mean.get_xdata().tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean.get_ydata().tolist() == pytest.approx(mean.get_xdata().tolist())
    assert (low.get_ydata()[0], high.get_ydata()[0]) == (-1.0, 1.0)
    assert end.get_xdata() == [4.0, 4.0]
    observed, hidden = (points.get_offsets().tolist() for points in axes[0].collections)
    assert observed == [[0.0, 0.0], [4.0, 4.0]]
    assert hidden == [[1.0, 1.0]]
    observed, hidden = (points.get_offsets().tolist() for points in axes[2].collections)
    assert (observed, hidden) == ([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0]], [])


def test_a_feature_that_the_data_has_not_raises():
    with pytest.raises(ValueError, match=r"features below 2, which the data has, but got \[2\]"):
        SeriesPlot(features=[2]).draw(Line(), three_series())
