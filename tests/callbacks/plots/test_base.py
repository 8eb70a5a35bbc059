import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from steer_lightning.callbacks import EndTimeSweep, FlowPlot, StiffPlot
from steer_lightning.callbacks.plots.base import EvaluationPlot, log_figure
from steer_lightning.callbacks.plots.style import legend_below, panels
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver
from tests.callbacks.plots.drawing import make_cnf, make_trainer, toy_data


@torch.no_grad()
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


@torch.no_grad()
def test_figure_of_a_two_dimensional_flow_with_a_learned_end():
    module = make_cnf(learn_t1=True)
    module.flow.horizon.learned_t1.fill_(3.0)
    figure = FlowPlot().draw(module, torch.zeros(4, 2))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["t = 0.00", "t = 1.00", "t = 2.00", "t = 3.00", "data"]
    base = torch.as_tensor(figure.axes[0].images[0].get_array())
    side = torch.linspace(-4.0, 4.0, 80).double()
    expected = (-0.5 * (side[:, None] ** 2 + side**2)).exp() / (2.0 * torch.pi)
    torch.testing.assert_close(base.double(), expected, atol=1e-6, rtol=0.0)


def test_a_plot_of_a_solve_that_fails_does_not_end_the_run(tmp_path):
    class Far(nn.Module):
        """Tame near the data, and stiff where no data is."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, t, y):
            return self.w * torch.where(y.abs() > 3.5, -1e5 * y, 0.0)

    module = CNFModule(CNF(Far(), (2,), AdaptiveSolver(max_nfe=100)))
    data = DataLoader(torch.zeros(4, 2), batch_size=4)
    trainer = make_trainer(tmp_path, FlowPlot(every_n_checks=1), max_epochs=1)
    with pytest.warns(UserWarning, match="FlowPlot draws nothing this time: .*evaluations"):
        trainer.fit(module, data, data)
    assert trainer.global_step == 1


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
    for times in ([0.0, 1.0, 1e4], [0.0, -0.1, -1e4]):
        linear = StiffPlot().draw(Still(), (torch.tensor(times), y)).axes
        assert all(axis.get_xscale() == "linear" for axis in linear)


def test_plots_without_tensorboard(tmp_path):
    class Blank(EvaluationPlot):
        name = "blank"

        def draw(self, pl_module, batch):
            return Figure()

    logged = CSVLogger(tmp_path, "c", 0)
    for logger, folder in ((False, tmp_path), (logged, tmp_path / "c/version_0")):
        trainer = make_trainer(tmp_path, Blank(), EndTimeSweep(0.5, 2), logger=logger)
        trainer.test(make_cnf(), toy_data(), verbose=False)
        names = sorted(path.name for path in folder.glob("plots/*.[cp]*"))
        assert names == ["blank_test.png", "end_time_sweep_test.csv", "end_time_sweep_test.png"]


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


def test_a_legend_of_long_names_lies_within_the_figure():
    figure, [[axis]] = panels(1, 1, (4.2, 3.0))
    for name in (
        "without",
        "with it in one part of the model",
        "with it in the whole of the model",
    ):
        axis.plot([0.0, 1.0], label=name)
    legend_below(figure)
    figure.draw_without_rendering()
    (legend,), outside = figure.legends, figure.bbox
    box = legend.get_window_extent()
    assert outside.x0 <= box.x0 < box.x1 <= outside.x1
    assert outside.y0 <= box.y0 < box.y1 <= outside.y1
