"""Refusals of every plot, and that training does not notice it."""

import re
from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader

from datamodules import PeriodicDataModule
from steer_lightning.callbacks import (
    EndTimeSweep,
    FeaturePlot,
    FlowPlot,
    SampleGrid,
    SeriesPlot,
    StiffPlot,
)
from steer_lightning.modules import (
    ClassifierModule,
    ImageFlowModule,
    LatentODEModule,
    ODERNNModule,
)
from steer_lightning.nn import (
    CNF,
    Augmented,
    ConcatSquashField,
    LatentODE,
    MLPField,
    ODEBlock,
    ODERNNForecaster,
)
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


def latent_ode():
    return LatentODEModule(LatentODE(1, 2, 3, "rnn", 4, (4,), (4,)))


def waves():
    return PeriodicDataModule(n_trajectories=20, n_points=8, n_observed=4, val_size=4)


@pytest.mark.parametrize(
    ("plot", "make", "data"),
    [
        (
            FlowPlot(1),
            lambda: make_cnf(1, data_at="t0", trace_estimator="hutchinson"),
            lambda: toy_data(1),
        ),
        (FlowPlot(1), lambda: make_cnf(trace_estimator="hutchinson"), toy_data),
        (StiffPlot(2), make_stiff, stiff_data),
        (FeaturePlot(b=0.5, every_n_checks=1), classifier, labelled),
        (
            SampleGrid(2, [1.0], every_n_checks=1),
            lambda: ImageFlowModule(lively(image_flow())),
            image_data,
        ),
        (
            SeriesPlot(extend=0.5, n_points=11, every_n_checks=1),
            latent_ode,
            waves,
        ),
        (
            SeriesPlot(extend=0.5, n_points=11, every_n_checks=1),
            lambda: ODERNNModule(ODERNNForecaster(1, 3, 4, (4,), (4,), 0.5)),
            waves,
        ),
    ],
)
def test_plots_of_a_run_change_neither_weights_nor_random_state(tmp_path, plot, make, data):
    def train(*callbacks):
        torch.manual_seed(0)
        module, loader = make(), data()
        loaders = (loader, loader) if isinstance(loader, DataLoader) else (loader,)
        logger = {} if callbacks else {"logger": False}
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=2, **logger)
        trainer.fit(module, *loaders)
        return module, torch.get_rng_state()

    (plain, plain_state), (module, state) = train(), train(plot)
    found = module.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in plain.state_dict().items())
    assert torch.equal(state, plain_state)
    step = module.trainer.global_step
    make_trainer(tmp_path, plot, precision="64-true").test(module, data(), verbose=False)
    name = plot.name
    assert plots(tmp_path) == [f"{name}_test.png", f"{name}_val.png"]
    assert (tmp_path / f"run/v/plots/{name}_val.png").read_bytes()[:4] == b"\x89PNG"
    drawn_at = [step // 2, step] if plot.every_n_checks == 1 else [step]
    assert images(tmp_path) == {f"{name}_val": drawn_at, f"{name}_test": [0]}


class NoBatches(Callback):
    def on_train_batch_start(self, *_):
        raise AssertionError("a batch was run")

    on_validation_batch_start = on_test_batch_start = on_train_batch_start


class Evaluates(BoringModel):
    def evaluate(self, batch):
        return {"loss": batch[0].mean()}


class ThreeDimensional(BoringModel):
    def __init__(self):
        super().__init__()
        self.flow = CNF(ConcatSquashField(3, (4,)), (3,))


def no_span():
    return ClassifierModule(nn.Identity(), nn.Linear(2, 2), num_classes=2)


REFUSED = [
    (FlowPlot, BoringModel, "Expected a module with a CNF of one or two dimensions as `flow`"),
    (FlowPlot, ThreeDimensional, "as `flow`, but got ThreeDimensional. Leave FlowPlot out"),
    (FeaturePlot, make_cnf, "a method `trajectories(x, t_eval)` and a block with a span, but"),
    (FeaturePlot, no_span, "and a block with a span, but got ClassifierModule"),
    (SampleGrid, make_cnf, "flow of images (C, H, W) as `flow`, but got CNFModule. Leave Sam"),
    (SampleGrid, BoringModel, "flow of images (C, H, W) as `flow`, but got BoringModel. Leave S"),
    (SeriesPlot, BoringModel, "method `predict_at(batch, times)`, but BoringModel has none"),
    (partial(SeriesPlot, features=[1]), latent_ode, "Expected features below 1, which the data"),
    (EndTimeSweep, BoringModel, "Expected a module with a method `evaluate(batch)`"),
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
    trainer = make_trainer(tmp_path, NoBatches(), callback, num_sanity_val_steps=0)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        getattr(trainer, stage)(make(), toy_data())
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
        (FeaturePlot, {"b": -0.1}, "b >= 0, n_samples >= 3 and n_times >= 2, but got b = -0.1"),
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
