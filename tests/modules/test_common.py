"""What every task must do, whatever its loss."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cli
from datamodules import SeriesDataModule, StiffODEDataModule, ToyDensityDataModule
from steer_lightning.batch import make_series
from steer_lightning.functional import stream
from steer_lightning.modules import (
    ClassifierModule,
    CNFModule,
    ImageFlowModule,
    LatentODEModule,
    ODERNNModule,
    RegressionModule,
    StiffODEModule,
)
from steer_lightning.modules.base import StochasticTaskModule
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
from tests.helpers.models import image_flow, lively


class Digits(LightningDataModule):
    """Random images with labels; no files."""

    def images(self, generator):
        return torch.rand(8, 1, 4, 4, generator=generator)

    def loader(self):
        images = self.images(torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Rings(Digits):
    """Points of the plane with their distance from zero; no files."""

    def loader(self):
        points = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(points, points.norm(dim=1, keepdim=True)), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


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


def node(name, **init_args):
    return {"class_path": f"steer_lightning.{name}", "init_args": init_args}


CASES = {
    "cnf": Case(
        CNFModule,
        lambda: {"flow": CNF(ConcatSquashField(2, (8,)), (2,))},
        {},
        lambda: ToyDensityDataModule(n_train=32, n_val=20, n_test=20, batch_size=16),
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
            "head": {
                "class_path": "torch.nn.Linear",
                "init_args": {"in_features": 16, "out_features": 3},
            },
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
                "nn.LatentODE", n_features=1, encoder="rnn", solver=node("solvers.DenseSolver")
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
            "head": {
                "class_path": "torch.nn.Linear",
                "init_args": {"in_features": 3, "out_features": 1},
            },
        },
    ),
    "stiff": Case(
        StiffODEModule,
        lambda: {"vector_field": MLPField(1, (8,))},
        {"interval": 0.5, "time_input": "released", "window": 7},
        lambda: StiffODEDataModule(r=5.0, interval=0.5, n_starts=16, batch_size=8, n_test=5),
        {
            "vector_field": node("nn.MLPField", dim=1, hidden=[8]),
            "interval": 0.5,
            "time_input": "released",
            "window": 7,
        },
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def make_trainer(tmp_path, **arguments):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            **arguments,
        }
    )


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(
        torch.equal(a_state[key], b_state[key]) for key in a_state
    )


class WatchGradients(Callback):
    """Collects the parameters without a gradient, and the steps taken."""

    def __init__(self):
        self.missing = []
        self.steps = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        self.missing += [
            name for name, p in pl_module.named_parameters() if p.grad is None or not p.grad.any()
        ]


class NeedsInferenceMode(Callback):
    """Asserts that evaluation runs under inference_mode, with the module in eval mode."""

    def __init__(self):
        self.seen = []

    def check(self, name, pl_module):
        assert torch.is_inference_mode_enabled()
        assert not pl_module.training
        self.seen.append(name)

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.check("validate", pl_module)

    def on_test_batch_start(self, trainer, pl_module, *_):
        self.check("test", pl_module)

    def on_predict_batch_start(self, trainer, pl_module, *_):
        self.check("predict", pl_module)


def test_every_module_is_covered():
    import steer_lightning.modules as modules

    assert {case.module.__name__ for case in CASES.values()} == set(modules.__all__)


def test_every_parameter_is_trained(case, tmp_path):
    module, watch = case.build(), WatchGradients()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    make_trainer(tmp_path, callbacks=[watch]).fit(module, case.data())
    assert (watch.steps, watch.missing) == (2, [])
    unmoved = [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


def test_evaluation_is_deterministic_and_under_inference_mode(case, tmp_path):
    module, data, mode = case.build(), case.data(), NeedsInferenceMode()
    trainer = make_trainer(tmp_path, callbacks=[mode])

    def everything():
        metrics = (trainer.validate(module, data, verbose=False),
                   trainer.test(module, data, verbose=False))  # fmt: skip
        return metrics, trainer.predict(module, data)

    metrics, predictions = everything()
    again, predictions_again = everything()
    assert set(mode.seen) == {"validate", "test", "predict"}
    assert metrics == again
    assert any(key.startswith("val/") for key in metrics[0][0])
    assert any(key.startswith("test/") for key in metrics[1][0])
    for a, b in zip(predictions, predictions_again, strict=True):
        parts = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
        assert all(torch.equal(x, y) for x, y in parts)


def test_evaluate_gives_the_training_loss(case, tmp_path, monkeypatch):
    without = {name: 0.0 for name in case.plain if name in ("kinetic_weight", "jacobian_weight")}
    module, data = case.build(**without), case.data()
    # Noise is another one in each batch: give all of them the same.
    monkeypatch.setattr(
        StochasticTaskModule, "noise_stream", lambda self, *key: stream("cpu", "one")
    )
    losses = []

    class Record(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            losses.append(pl_module.evaluate(batch)["loss"].item())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    make_trainer(tmp_path, callbacks=[Record()]).fit(module, data)
    assert len(losses) == 4
    assert losses[::2] == losses[1::2]


def test_checkpoint_of_a_module_built_in_python(case, tmp_path):
    module, data = case.build(), case.data()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    path = tmp_path / "module.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {key: stored[key] for key in case.plain} == case.plain
    torch.manual_seed(1)
    loaded = case.module.load_from_checkpoint(path, weights_only=True, **case.objects())
    assert same_weights(loaded, module)
    for key, value in case.plain.items():
        assert loaded.hparams[key] == value
    results = [trainer.test(m, data, verbose=False) for m in (module, loaded)]
    assert results[0] == results[1]


def test_checkpoint_of_a_module_built_by_the_cli(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # LightningCLI needs a datamodule from the command line: give it one by class path.
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "limit_val_batches": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "class_path": f"steer_lightning.modules.{case.module.__name__}",
            "init_args": {
                **case.config,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.StepLR",
                    "init_args": {"step_size": 3},
                },
                "lr_interval": "step",
            },
        },
        "data": data_config(case),
        "checkpoint": {"dirpath": "checkpoints"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module = cli.main(["fit", "--config", "config.yaml"]).model
    loaded = case.module.load_from_checkpoint("checkpoints/last.ckpt", weights_only=True)
    assert same_weights(loaded, module)
    configured = loaded.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert configured["optimizer"].defaults["lr"] == 0.5
    assert configured["lr_scheduler"]["scheduler"].step_size == 3
    assert configured["lr_scheduler"]["interval"] == "step"


def data_config(case):
    if case.module is CNFModule:
        return {
            "class_path": "datamodules.ToyDensityDataModule",
            "init_args": {"n_train": 8, "n_val": 8, "batch_size": 8},
        }
    if case.module is StiffODEModule:
        return {
            "class_path": "datamodules.StiffODEDataModule",
            "init_args": {"r": 5.0, "interval": 0.5, "n_starts": 8, "n_test": 5},
        }
    return {"class_path": f"{case.data.__module__}.{case.data.__name__}"}


def test_default_optimizer_and_a_schedule():
    module = CASES["cnf"].build()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.parameters()))
    module = CNFModule(
        CNF(ConcatSquashField(2, (4,)), (2,)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    )
    configured = module.configure_optimizers()
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]
    assert configured["lr_scheduler"]["interval"] == "epoch"
