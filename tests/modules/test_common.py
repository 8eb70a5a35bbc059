"""What every task must do, whatever its loss."""

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch import nn

import cli
from steer_lightning.modules import (
    CNFModule,
    StiffODEModule,
)
from steer_lightning.modules.base import StochasticTaskModule
from steer_lightning.nn import (
    CNF,
    ConcatSquashField,
)
from steer_lightning.utils.seeding import stream
from tests.modules.cases import CASES, steps


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


def test_every_parameter_is_trained(case):
    module, watch = case.build(), WatchGradients()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    steps(
        watch,
    ).fit(module, case.data())
    assert (watch.steps, watch.missing) == (2, [])
    unmoved = [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


def test_evaluation_is_deterministic_and_under_inference_mode(case):
    module, data, mode = case.build(), case.data(), NeedsInferenceMode()
    trainer = steps(
        mode,
    )

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


def test_evaluate_gives_the_training_loss(case, monkeypatch):
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

    steps(
        Record(),
    ).fit(module, data)
    assert len(losses) == 4
    assert losses[::2] == losses[1::2]


def test_checkpoint_of_a_module_built_in_python(case, tmp_path):
    module, data = case.build(), case.data()
    trainer = steps()
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


class RecordRates(Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def warming_up():
    """A flow whose rate of 1e-3 is reached from a quarter of it in two steps."""
    return CNFModule(
        CNF(ConcatSquashField(2, (4,)), (2,)),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, 2),
        lr_interval="step",
    )


@pytest.mark.parametrize("as_callback", [False, True])
def test_lightnings_learning_rate_finder(as_callback, tmp_path):
    module, record = warming_up(), RecordRates()
    find = {"num_training": 24, "early_stop_threshold": None}
    finder = LearningRateFinder(num_training_steps=24, early_stop_threshold=None)
    callbacks = [finder, record] if as_callback else [record]
    trainer = steps(*callbacks, max_steps=4, default_root_dir=tmp_path)
    data = CASES["cnf"].data()
    if not as_callback:
        Tuner(trainer).lr_find(module, data, **find)
        record.rates.clear()
    trainer.fit(module, data)
    assert module.lr not in (None, 1e-3)
    factors = [0.25, 0.625, 1.0, 1.0]  # the schedule begins at the rate found
    assert record.rates == pytest.approx([module.lr * factor for factor in factors])


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
