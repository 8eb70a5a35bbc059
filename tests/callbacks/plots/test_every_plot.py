"""Refusals of every plot, and that training does not notice it."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from steer_lightning.callbacks import (
    EndTimeSweep,
    FeaturePlot,
    FlowPlot,
    SampleGrid,
    SeriesPlot,
    StiffPlot,
)
from steer_lightning.modules import ClassifierModule, ImageFlowModule
from steer_lightning.nn import CNF, Augmented, ConcatSquashField, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver
from tests.callbacks.plots.drawing import (
    Bare,
    CountBatches,
    make_cnf,
    make_stiff,
    make_trainer,
    plots,
    stiff_data,
    toy_data,
)
from tests.helpers.models import image_flow, lively

NAN = float("nan")


def classifier():
    block = Augmented(ODEBlock(MLPField(3, (8,)), FixedGridSolver("rk4", 1)), 1)
    return ClassifierModule(block, nn.Linear(3, 2), num_classes=2)


def labelled():
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader([(row, i % 2) for i, row in enumerate(x)], batch_size=6, shuffle=True)


def image_data():
    grey = torch.randint(256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return DataLoader(grey, batch_size=4, shuffle=True)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize(
    ("callbacks", "make", "data"),
    [
        ([FlowPlot(1), EndTimeSweep(0.5, 3, split="train")], make_cnf, toy_data),
        ([StiffPlot(1)], make_stiff, stiff_data),
        ([FeaturePlot(b=0.5, every_n_checks=1)], classifier, labelled),
        (
            [SampleGrid(1, [1.0], every_n_checks=1)],
            lambda: ImageFlowModule(lively(image_flow())),
            image_data,
        ),
    ],
)
def test_drawing_changes_neither_weights_nor_random_state(
    tmp_path, callbacks, make, data, precision
):
    def train(*callbacks):
        torch.manual_seed(0)
        module, loader = make(), data()
        loaders = (loader, loader) if isinstance(loader, DataLoader) else (loader,)
        more = {"max_epochs": 2, "logger": False, "precision": precision}
        make_trainer(tmp_path, *callbacks, **more).fit(module, *loaders)
        return module.state_dict(), torch.get_rng_state()

    plain, drawn = train(), train(*callbacks)
    assert all(torch.equal(plain[0][key], drawn[0][key]) for key in plain[0])
    assert torch.equal(plain[1], drawn[1])


class Evaluates(Bare):
    def evaluate(self, batch):
        return {"loss": batch[0].mean()}


class ThreeDimensional(Bare):
    def __init__(self):
        super().__init__()
        self.flow = CNF(ConcatSquashField(3, (4,)), (3,))


def no_span():
    return ClassifierModule(nn.Identity(), nn.Linear(2, 2), num_classes=2)


REFUSED = [
    (FlowPlot, Bare, "Expected a module with a CNF of one or two dimensions as `flow`"),
    (FlowPlot, ThreeDimensional, "as `flow`, but got ThreeDimensional. Leave FlowPlot out"),
    (FeaturePlot, make_cnf, "a method `trajectories(x, t_eval)` and a block with a span, but"),
    (FeaturePlot, no_span, "and a block with a span, but got ClassifierModule"),
    (SampleGrid, make_cnf, "flow of images (C, H, W) as `flow`, but got CNFModule. Leave Sam"),
    (SampleGrid, Bare, "flow of images (C, H, W) as `flow`, but got Bare. Leave SampleGrid"),
    (SeriesPlot, Bare, "method `predict_at(batch, times)`, but Bare has none"),
    (EndTimeSweep, Bare, "Expected a module with a method `evaluate(batch)`"),
    (EndTimeSweep, Evaluates, "Expected a model with a SpanHorizon, but Evaluates"),
    (EndTimeSweep, make_cnf, "Expected an offset that keeps the end time apart from t0"),
]


@pytest.mark.parametrize(
    ("plot", "make", "message", "stage"),
    [
        (*case, stage)
        for case in REFUSED
        for stage in ("fit", "validate", "test")
        if case[0] is not EndTimeSweep or stage != "validate"  # it sweeps after the others
    ],
)
def test_wrong_models_are_refused_before_the_first_batch(tmp_path, plot, make, message, stage):
    sweep = {"b": 1.0, "split": "train" if stage == "fit" else "test"}
    callback = plot(**sweep if plot is EndTimeSweep else {})
    batches = CountBatches()
    trainer = make_trainer(tmp_path, batches, callback, num_sanity_val_steps=0)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        getattr(trainer, stage)(make(), toy_data())
    assert batches.n == 0
    assert plots(tmp_path) == []


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (FlowPlot, {"every_n_checks": 0}, "Expected `every_n_checks` >= 1, but got 0"),
        (EndTimeSweep, {"b": 0.0}, "Expected b > 0, n_points >= 2, n_batches >= 1 and max_nfe >="),
        (EndTimeSweep, {"b": NAN}, "but got b = nan"),
        (EndTimeSweep, {"b": 0.5, "max_nfe": 0}, "max_nfe = 0"),
        (EndTimeSweep, {"b": 0.5, "n_points": 1}, "n_points = 1"),
        (EndTimeSweep, {"b": 0.5, "n_batches": 0}, "n_batches = 0"),
        (EndTimeSweep, {"b": 0.5, "split": "vla"}, "Did you mean 'val'?"),
        (
            FeaturePlot,
            {"b": -0.1},
            "Expected b >= 0, n_samples >= 3 and n_times >= 2, but got b",
        ),
        (FeaturePlot, {"b": NAN}, "but got b = nan"),
        (FeaturePlot, {"n_samples": 2}, "n_samples = 2"),
        (FeaturePlot, {"n_times": 1}, "n_times = 1"),
        (FeaturePlot, {"every_n_checks": 0}, "Expected `every_n_checks` >= 1, but got 0"),
        (SampleGrid, {"n_samples": 0}, "n_samples >= 1 and temperatures > 0, but got n_samples ="),
        (SampleGrid, {"temperatures": []}, "temperatures = ()"),
        (SampleGrid, {"temperatures": [1.0, 0.0]}, "temperatures = (1.0, 0.0)"),
        (SampleGrid, {"temperatures": [-1.0]}, "temperatures = (-1.0,)"),
        (SampleGrid, {"every_n_checks": 0}, "Expected `every_n_checks` >= 1, but got 0"),
        *(
            (SeriesPlot, arguments, "Expected n_series >= 1, n_points >= 2, extend >= 0")
            for arguments in (
                {"n_series": 0},
                {"n_points": 1},
                {"extend": -0.1},
                {"features": []},
                {"features": [-1]},
            )
        ),
    ],
)
def test_bad_arguments_raise(plot, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plot(**arguments)
