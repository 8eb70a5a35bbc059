import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from steer_lightning.callbacks import EndTimeSweep, FlowPlot, StiffPlot
from steer_lightning.callbacks.plots.evaluation import log_figure
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF
from steer_lightning.solvers import FixedGridSolver
from tests.callbacks.plots.drawing import (
    images,
    make_cnf,
    make_stiff,
    make_trainer,
    plots,
    stiff_data,
    toy_data,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("dim", "data_at"), [(1, "t0"), (2, "t1")])
def test_flow_plot(tmp_path, dim, data_at):
    module, data = make_cnf(dim, data_at=data_at), toy_data(dim)
    trainer = make_trainer(tmp_path, FlowPlot(1), max_epochs=2)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert plots(tmp_path) == ["flow_test.png", "flow_val.png"]
    for path in (tmp_path / "run" / "v" / "plots").iterdir():
        assert path.suffix == ".svg" or path.read_bytes()[:8] == PNG
    assert images(tmp_path) == {"flow_val": [1, 2], "flow_test": [2]}


def test_figure_of_a_one_dimensional_flow():
    class Widen(nn.Module):
        """``f = y log 2``: the base of std 1 becomes data of std 2."""

        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(2.0).log())

        def forward(self, t, y):
            return self.rate * y

    module = CNFModule(CNF(Widen(), (1,), FixedGridSolver("rk4", 8)))
    figure = FlowPlot().draw(module, (torch.zeros(4, 1), torch.ones(4)))
    left, right = figure.axes
    paths = [line.get_xydata() for line in left.lines]
    for path in paths:  # time against place, from base to data
        assert (path[0, 0], path[-1, 0]) == (0.0, 1.0)
        assert path[-1, 1] == pytest.approx(2.0 * path[0, 1], rel=1e-3)
    density, x = right.lines[0].get_xydata().T
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(torch.tensor(x)).exp()
    torch.testing.assert_close(torch.tensor(density), expected, atol=1e-3, rtol=0.0)


def test_figure_of_a_two_dimensional_flow():
    figure = FlowPlot().draw(make_cnf(), torch.zeros(4, 2))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["t = 0.00", "t = 0.33", "t = 0.67", "t = 1.00", "data"]
    base = torch.as_tensor(figure.axes[0].images[0].get_array())
    side = torch.linspace(-4.0, 4.0, 80).double()
    expected = (-0.5 * (side[:, None] ** 2 + side**2)).exp() / (2.0 * torch.pi)
    torch.testing.assert_close(base.double(), expected, atol=1e-6, rtol=0.0)


def test_stiff_plot(tmp_path):
    module, data = make_stiff(), stiff_data()
    trainer = make_trainer(tmp_path, StiffPlot(every_n_checks=2), max_epochs=5)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert plots(tmp_path) == ["trajectory_test.png", "trajectory_val.png"]
    assert images(tmp_path) == {"trajectory_val": [6, 12], "trajectory_test": [15]}
    t, y = data.build("test")[0]
    with torch.no_grad():
        figure = StiffPlot().draw(module, (t, y))
        predicted = module(y[0], t)
    true_line, predicted_line = figure.axes[0].lines
    torch.testing.assert_close(torch.tensor(true_line.get_ydata()), y[:, 0].double())
    torch.testing.assert_close(torch.tensor(predicted_line.get_ydata()), predicted[:, 0].double())


class Still(torch.nn.Module):
    """Stays where it starts."""

    def forward(self, y0, t):
        return y0.expand(len(t), -1)


@pytest.mark.parametrize(("dim", "n_panels"), [(1, 1), (2, 3), (3, 3)])
def test_stiff_plot_has_a_panel_for_each_component(dim, n_panels):
    t, y = torch.tensor([0.0, 0.1, 1e4]), torch.randn(3, dim)
    axes = StiffPlot().draw(Still(), (t, y)).axes
    assert [axis.get_xscale() for axis in axes] == ["log"] * dim + ["linear"] * (n_panels - dim)
    for i, axis in enumerate(axes[:dim]):
        true, predicted = (torch.tensor(line.get_ydata()).float() for line in axis.lines)
        assert torch.equal(true, y[:, i])
        assert torch.equal(predicted, y[:1, i].expand(3))
    if dim == 2:  # the phase plane
        true = torch.tensor(axes[2].lines[0].get_xydata()).float()
        assert torch.equal(true, y)
    linear = StiffPlot().draw(Still(), (torch.tensor([0.0, 1.0, 1e4]), y)).axes
    assert all(axis.get_xscale() == "linear" for axis in linear)


def test_plots_without_tensorboard(tmp_path):
    for logger, folder in ((False, tmp_path), (CSVLogger(tmp_path, "c", 0), None)):
        trainer = make_trainer(tmp_path, FlowPlot(), EndTimeSweep(0.5, 2), logger=logger)
        trainer.test(make_cnf(), toy_data(), verbose=False)
        names = sorted(p.name for p in (folder or tmp_path / "c/version_0").glob("plots/*.[cp]*"))
        expected = ["end_time_sweep_test.csv", "end_time_sweep_test.png", "flow_test.png"]
        assert names == expected


def test_a_figure_goes_to_a_logger_that_takes_figures():
    class Experiment:
        """As Comet's."""

        def log_figure(self, figure_name, figure, step):
            self.seen = figure_name, figure, step

    class Taking(CSVLogger):
        experiment = Experiment()

    figure, logger = Figure(), Taking("unused")
    log_figure(logger, figure, "flow_val", 3)
    assert logger.experiment.seen == ("flow_val", figure, 3)
