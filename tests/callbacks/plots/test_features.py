import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.callbacks import FeaturePlot
from steer_lightning.callbacks.plots.features import principal_components
from steer_lightning.modules import ClassifierModule, RegressionModule
from steer_lightning.nn import Augmented, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver


def make_classifier(t_span=(0.0, 1.0)):
    block = ODEBlock(MLPField(4, (8,)), FixedGridSolver("rk4", 1), t_span)
    return ClassifierModule(Augmented(block, 1), nn.Linear(4, 3), num_classes=3)


def loader(n=12):
    return DataLoader(TensorDataset(torch.randn(n, 3), torch.arange(n) % 3), batch_size=6)


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("b", [0.0, 0.5])
def test_figure_follows_the_features_beyond_the_end(t_span, b):
    module = make_classifier(t_span).eval()
    x, labels = next(iter(loader()))
    t0, t1 = t_span
    with torch.no_grad():
        figure = FeaturePlot(b, n_samples=4, n_times=5).draw(module, (x, labels))
        end = module.trajectories(x[:4], torch.tensor([t0, t1]))[-1]
    in_plane, in_time = figure.axes
    times, first = in_time.lines[0].get_xydata().T
    beyond = t1 + b if t1 > t0 else t1 - b
    assert len(in_plane.lines) == 4
    assert times[0] == t0
    assert times[4] == t1
    assert times[-1] == pytest.approx(beyond)
    expected = principal_components(end, end)
    torch.testing.assert_close(torch.tensor(first[4]).float(), expected[0, 0], atol=1e-3, rtol=0.0)
    dots = torch.as_tensor(in_plane.collections[0].get_offsets().data).float()
    torch.testing.assert_close(dots, expected, atol=1e-3, rtol=0.0)


def test_a_learned_end_is_followed_at_actual_times():
    class Clock(nn.Module):
        def forward(self, t, y):
            return torch.ones_like(y)

    block = ODEBlock(Clock(), FixedGridSolver("rk4", 1), learn_t1=True)
    with torch.no_grad():
        block.horizon.learned_t1.fill_(2.0)
        figure = FeaturePlot(0.5).draw(
            ClassifierModule(block, nn.Linear(3, 3), 3), next(iter(loader()))
        )
    times, first = figure.axes[1].lines[0].get_xydata().T
    assert times[-1] == pytest.approx(2.5)
    slope = (first[1:] - first[0]) / times[1:]
    assert slope == pytest.approx(slope[0], rel=1e-3)
    assert abs(float(slope[0])) > 0.1


def test_paths_end_at_t1_where_a_solve_fails_beyond_it():
    class Stops(nn.Module):
        """Not a number long after t1."""

        def forward(self, t, y):
            return torch.where(t > 3.0, torch.full_like(y, torch.nan), -y)

    module = ClassifierModule(ODEBlock(Stops(), TorchdiffeqSolver()), nn.Linear(3, 3), 3)
    with pytest.warns(UserWarning, match="FeaturePlot ends at t1: "):
        figure = FeaturePlot(4.0).draw(module, next(iter(loader())))
    assert max(figure.axes[1].lines[0].get_xdata()) == 1.0


def test_classes_have_their_colours():
    labels = torch.tensor([0, 1, 2, 0])
    figure = FeaturePlot().draw(make_classifier(), (torch.randn(4, 3), labels))
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[0] == colours[3]
    assert len(set(colours)) == 3


@pytest.mark.parametrize("n_classes", [3, 12])
def test_numbers_and_many_classes_have_a_scale_of_colours(n_classes):
    module = RegressionModule(ODEBlock(MLPField(3, (4,))), nn.Linear(3, 1))
    x = torch.randn(n_classes, 3)
    for targets in (x.sum(1, keepdim=True), torch.arange(n_classes)):
        figure = FeaturePlot().draw(module, (x, targets))
        assert len({line.get_color() for line in figure.axes[0].lines}) == n_classes


def test_principal_components_by_hand():
    x = torch.tensor([[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0], [0.0, -2.0, 1.0], [0.0, 2.0, 1.0]])
    torch.testing.assert_close(principal_components(x, x), x[:, :2])
    moved = x + torch.tensor([1.0, 1.0, 5.0])
    torch.testing.assert_close(principal_components(moved, x), x[:, :2] + 1.0)
    line = torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(
        principal_components(line, line), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    )
