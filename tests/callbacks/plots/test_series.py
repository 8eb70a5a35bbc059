import pytest
import torch
from pytorch_lightning import LightningModule

from datamodules import PeriodicDataModule
from steer_lightning.callbacks import SeriesPlot, SteerCallback
from steer_lightning.modules import LatentODEModule, ODERNNModule
from steer_lightning.nn import LatentODE, ODERNNForecaster
from steer_lightning.nn.series import make_series
from tests.callbacks.plots.drawing import images, make_trainer, plots


def latent_ode():
    torch.manual_seed(0)
    return LatentODEModule(LatentODE(1, 2, 3, "rnn", 4, (4,), (4,)))


def ode_rnn():
    torch.manual_seed(0)
    return ODERNNModule(ODERNNForecaster(1, 3, 4, (4,), (4,), 0.5))


def waves():
    return PeriodicDataModule(n_trajectories=20, n_points=8, n_observed=4, val_size=4)


@pytest.mark.parametrize("make", [latent_ode, ode_rnn])
def test_a_plot_after_validation_and_test(tmp_path, make):
    callbacks = SeriesPlot(extend=0.5, n_points=11, every_n_checks=1), SteerCallback(b="auto")
    module, trainer = make(), make_trainer(tmp_path, *callbacks)
    trainer.fit(module, waves())
    trainer.test(module, waves(), verbose=False)
    assert plots(tmp_path) == ["series_test.png", "series_val.png"]
    assert images(tmp_path) == {"series_val": [1], "series_test": [1]}


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
