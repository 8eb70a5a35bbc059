from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imsave

from reproduce.experiments import Comparison, Metric, Variant
from reproduce.figures import draw_against_b, draw_curves, draw_sweeps, draw_trajectories
from tests.reproduce.records import ACCURACY, BASELINE, STEER, experiment, record

OTHER = Variant("STEER, all", "cnf/toy1d")
PARTS = (Comparison("MNIST", BASELINE, (STEER,)), Comparison("SVHN", BASELINE, (OTHER, STEER)))
SWEEP = {"end_time": [0.5, 1.5], "accuracy": [0.7, 0.8]}


def results(**changes):
    """Two seeds of each variant, the settings apart."""
    return {v: [record(seed, 0.8, **changes) for seed in (0, 1)] for v in (BASELINE, STEER, OTHER)}


@pytest.mark.parametrize(
    ("draw", "settings", "xlabel", "ylabel"),
    [
        (draw_curves, {}, "training time (processor seconds)", "validation accuracy"),
        (draw_sweeps, {"sweep": SWEEP}, "end time of evaluation T", "accuracy (%)"),
    ],
)
def test_one_label_has_one_colour_in_all_panels(draw, settings, xlabel, ylabel):
    metric = Metric("sweep/accuracy@0.5", "accuracy at T = 0.5, %", "higher", 100.0)
    metrics = (metric,) if settings else (ACCURACY,)
    figure = draw(experiment(metrics, comparisons=PARTS), results(**settings))
    colours = [
        {line.get_label(): line.get_color() for line in axis.lines if line.get_label()[0] != "_"}
        for axis in figure.axes
    ]
    assert [set(found) for found in colours] == [
        {"without", "STEER"}, {"without", "STEER", "STEER, all"},
    ]  # fmt: skip
    assert colours[0].items() <= colours[1].items()
    assert len(set(colours[1].values())) == 3
    assert {(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes} == {(xlabel, ylabel)}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["without", "STEER", "STEER, all"]


def test_panels_against_b_are_labelled_at_the_edges():
    variants = [Variant(f"b = {b}", "cnf/toy1d") for b in (0, 0.5)]
    part = Comparison("a flow", variants[0], (variants[1],))
    nfe = Metric("test/nfe_forward", "NFE of a test batch", "lower")
    given = {v: [record(0, 0.5 + i / 4), record(1, 0.5)] for i, v in enumerate(variants)}
    figure = draw_against_b(experiment((ACCURACY, nfe), comparisons=(part,)), given)
    first, last = figure.axes
    assert (first.get_title(), first.get_xlabel()) == ("a flow", "")
    assert (last.get_title(), last.get_xlabel()) == ("", "half-width b (in units of t)")
    assert [axis.get_ylabel() for axis in figure.axes] == ["accuracy, %", "NFE of a test batch"]
    assert first.lines[0].get_xydata().tolist() == [[0.0, 50.0], [0.5, 62.5]]


def test_a_picture_is_made_of_all_plots_or_not_at_all(tmp_path):
    plots = tmp_path / "here" / "logs" / "plots"
    plots.mkdir(parents=True)
    imsave(plots / "trajectory_test.png", np.zeros((20, 20, 3)))
    found = {v: [replace(r, folder=tmp_path / "here") for r in rs] for v, rs in results().items()}
    drawn = experiment((ACCURACY,), comparisons=PARTS)
    last = PARTS[-1].variants[-1]
    elsewhere = [replace(r, folder=tmp_path / "elsewhere") for r in found[last]]
    both = draw_trajectories(drawn, {**found, last: [*elsewhere, *found[last]]})
    n_panels = sum(len(part.variants) for part in PARTS)
    assert len([axis for axis in both.axes if axis.images]) == n_panels
    assert draw_trajectories(drawn, {**found, last: elsewhere}).axes == []


@pytest.mark.parametrize(("width", "shape"), [(20, (2, 3)), (40, (3, 2)), (80, (5, 1))])
def test_narrow_plots_of_a_comparison_stand_side_by_side(tmp_path, width, shape):
    (tmp_path / "logs" / "plots").mkdir(parents=True)
    imsave(tmp_path / "logs" / "plots" / "trajectory_test.png", np.zeros((20, width, 3)))
    found = {v: [replace(r, folder=tmp_path) for r in rs] for v, rs in results().items()}
    figure = draw_trajectories(experiment((ACCURACY,), comparisons=PARTS), found)
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    titles = [axis.get_title("left") for axis in figure.axes if axis.images]
    assert titles == [
        "MNIST: without", "MNIST: STEER", "SVHN: without", "SVHN: STEER, all", "SVHN: STEER",
    ]  # fmt: skip
