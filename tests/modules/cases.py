"""One small case of every task: how it is built in Python, and how under LightningCLI."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from datamodules import (
    SeriesDataModule,
    StiffODEDataModule,
    TensorDataModule,
    ToyDensityDataModule,
)
from datamodules.base import TensorData
from steer_lightning.modules import (
    ClassifierModule,
    CNFModule,
    ImageFlowModule,
    LatentODEModule,
    ODERNNModule,
    RegressionModule,
    StiffODEModule,
)
from steer_lightning.nn import (
    CNF,
    Augmented,
    ConcatSquashField,
    ConvField,
    LatentODE,
    MLPField,
    ODEBlock,
    ODERNNForecaster,
)
from steer_lightning.nn.series import make_series
from tests.helpers.models import image_flow, lively, tiny_trainer


class Points(ToyDensityDataModule):
    """A few points of the plane."""

    def __init__(self):
        super().__init__(n_train=32, n_val=20, n_test=20, batch_size=16)


class Pieces(StiffODEDataModule):
    """A few pieces of a stiff ODE's solution."""

    def __init__(self):
        super().__init__(r=5.0, interval=0.5, n_starts=16, batch_size=8, n_test=5)


class Digits(TensorDataModule):
    """Random images with labels; no files."""

    def __init__(self):
        super().__init__(batch_size=4)

    def images(self, generator):
        return torch.rand(8, 1, 4, 4, generator=generator)

    def build(self, split):
        images = self.images(torch.Generator().manual_seed(0))
        return TensorData((images, torch.arange(8) % 3))


class Rings(Digits):
    """Points of the plane with their distance from zero; no files."""

    def build(self, split):
        points = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        return TensorData((points, points.norm(dim=1, keepdim=True)))


class GreyDigits(Digits):
    """The same with grey values, 0 to 255."""

    def images(self, generator):
        return torch.randint(256, (8, 1, 4, 4), generator=generator).float()


class Waves(SeriesDataModule):
    """Noisy waves of two kinds, at times of their own; no files."""

    n_features = 1

    def __init__(self):
        super().__init__(batch_size=8, val_size=6)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        times = [torch.rand(4 + i % 3, generator=generator).sort().values for i in range(30)]
        values = [torch.sin((3 + 2 * (i % 2)) * t)[:, None] for i, t in enumerate(times)]
        seen = [torch.ones_like(x) for x in values]
        labels = [torch.tensor(i % 2) for i in range(30)]
        return make_series(times, values, seen, labels=labels), None


@dataclass
class Case:
    """One task: how to build it in Python, and how under LightningCLI."""

    module: type[LightningModule]
    objects: Any  # makes the arguments that are objects
    plain: dict[str, Any]
    data: Any
    config: dict[str, Any]

    def build(self, **plain: Any) -> LightningModule:
        torch.manual_seed(0)
        return self.module(**self.objects(), **{**self.plain, **plain})


def steps(*callbacks: Callback, **settings: Any) -> Trainer:
    """A trainer of two steps."""
    return tiny_trainer(*callbacks, **{"max_epochs": -1, "max_steps": 2, **settings})


def node(name, **init_args):
    return {"class_path": f"steer_lightning.{name}", "init_args": init_args}


def linear(n_in, n_out):
    init_args = {"in_features": n_in, "out_features": n_out}
    return {"class_path": "torch.nn.Linear", "init_args": init_args}


CASES = {
    "cnf": Case(
        CNFModule,
        lambda: {"flow": CNF(ConcatSquashField(2, (8,)), (2,))},
        {},
        Points,
        {
            "flow": node(
                "nn.CNF",
                vector_field=node("nn.ConcatSquashField", dim=2, hidden=[8]),
                event_shape=[2],
            )
        },
    ),
    "classifier": Case(
        ClassifierModule,
        lambda: {"block": ODEBlock(ConvField(1, 4)), "head": nn.Linear(16, 3)},
        {"num_classes": 3},
        Digits,
        {
            "block": node("nn.ODEBlock", vector_field=node("nn.ConvField", channels=1, filters=4)),
            "head": linear(16, 3),
            "num_classes": 3,
        },
    ),
    "image flow": Case(
        ImageFlowModule,
        lambda: {"flow": lively(image_flow((1, 4, 4)))},
        {"kinetic_weight": 0.5, "jacobian_weight": 0.25, "test_draws": 2, "temperature": 0.9},
        GreyDigits,
        {
            "flow": node(
                "nn.MultiScaleCNF",
                event_shape=[1, 4, 4],
                vector_field=node("nn.ConvFlowField", hidden=[3]),
                solver=node("solvers.FixedGridSolver", n_steps=2),
            ),
            "jacobian_weight": 0.25,
        },
    ),
    "latent ode": Case(
        LatentODEModule,
        lambda: {
            "network": LatentODE(1, 3, 4, "ode_rnn", 5, (6,), (6,), 0.2),
            "classifier": nn.Linear(3, 2),
        },
        {"n_draws": 2, "noise_std": 0.5, "kl_wait_epochs": 3, "classification_weight": 2.0},
        Waves,
        {
            "network": node(
                "nn.LatentODE", n_features=1, encoder="rnn", solver=node("solvers.AdaptiveSolver")
            ),
            "kl_gamma": 0.5,
        },
    ),
    "ode rnn": Case(
        ODERNNModule,
        lambda: {
            "network": ODERNNForecaster(1, 3, 5, (6,), (6,), 0.2),
            "classifier": nn.Linear(3, 2),
        },
        {"noise_std": 0.5, "likelihood_weight": 0.5, "num_classes": 2},
        Waves,
        {"network": node("nn.ODERNNForecaster", n_features=1), "noise_std": 0.5},
    ),
    "regression": Case(
        RegressionModule,
        lambda: {"block": Augmented(ODEBlock(MLPField(3, (8,))), 1), "head": nn.Linear(3, 1)},
        {},
        Rings,
        {
            "block": node(
                "nn.Augmented",
                block=node("nn.ODEBlock", vector_field=node("nn.MLPField", dim=3, hidden=[8])),
                n_extra=1,
            ),
            "head": linear(3, 1),
        },
    ),
    "stiff": Case(
        StiffODEModule,
        lambda: {"vector_field": MLPField(1, (8,))},
        {"interval": 0.5, "time_input": "released", "window": 7},
        Pieces,
        {
            "vector_field": node("nn.MLPField", dim=1, hidden=[8]),
            "interval": 0.5,
            "time_input": "released",
            "window": 7,
        },
    ),
}
