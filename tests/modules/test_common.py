"""What every task must do, whatever its loss."""

from functools import partial

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.nn.utils import prune
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import cli
import steer_lightning.modules as modules
from steer_lightning.modules import CNFModule, RegressionModule
from steer_lightning.modules.stochastic import StochasticTaskModule
from steer_lightning.nn import CNF, ConcatSquashField, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver
from steer_lightning.utils.seeding import stream
from tests.helpers.models import tiny_trainer
from tests.helpers.watching import RecordRates, assert_same
from tests.modules.cases import CASES, steps


class Watch(Callback):
    """Steps taken, parameters without a gradient in one of them, and where evaluation ran."""

    def __init__(self):
        self.steps, self.missing, self.evaluated = 0, [], set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        self.missing += [
            name for name, p in pl_module.named_parameters() if p.grad is None or not p.grad.any()
        ]

    def on_validation_batch_start(self, trainer, pl_module, *_):
        assert torch.is_inference_mode_enabled() or trainer.state.fn == "fit"
        assert not pl_module.training
        self.evaluated.add(trainer.state.fn.value)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


@pytest.fixture(scope="module", params=sorted(CASES))
def trained(request):
    """A case, its module after two steps of training, and what was watched."""
    case, watch = CASES[request.param], Watch()
    module = case.build()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    steps(watch).fit(module, case.data())
    return case, module, watch, before


def test_every_module_is_covered():
    assert {case.module.__name__ for case in CASES.values()} == set(modules.__all__)


def test_every_parameter_is_trained(trained):
    _, module, watch, before = trained
    assert (watch.steps, watch.missing) == (2, [])
    unmoved = [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


def test_evaluation_is_deterministic_and_under_inference_mode(trained):
    case, module, watch, _ = trained
    trainer, data = module.trainer, case.data()

    def everything():
        metrics = (trainer.validate(module, data, verbose=False),
                   trainer.test(module, data, verbose=False))  # fmt: skip
        return metrics, trainer.predict(module, data)

    class BreaksOff(Callback):
        def on_validation_batch_end(self, *_):
            raise KeyError

        on_test_batch_end = on_validation_batch_end

    metrics, predictions = everything()
    for stage in ("validate", "test"):  # what it leaves in the metrics is not counted
        with pytest.raises(KeyError):
            getattr(tiny_trainer(BreaksOff()), stage)(module, data, verbose=False)
    again, predictions_again = everything()
    assert watch.evaluated == {"fit", "validate", "test", "predict"}
    assert metrics == again
    assert any(key.startswith("val/") for key in metrics[0][0])
    assert any(key.startswith("test/") for key in metrics[1][0])
    for a, b in zip(predictions, predictions_again, strict=True):
        parts = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
        assert all(torch.equal(x, y) for x, y in parts)


def test_checkpoint_of_a_module_built_in_python(trained, tmp_path):
    case, module, _, _ = trained
    trainer, data, path = module.trainer, case.data(), tmp_path / "module.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    torch.manual_seed(1)
    loaded = case.module.load_from_checkpoint(path, weights_only=True, **case.objects())
    assert_same(loaded.state_dict(), module.state_dict())
    for saved in (stored, loaded.hparams):
        assert {key: saved[key] for key in case.plain} == case.plain
    results = [trainer.test(m, data, verbose=False) for m in (module, loaded)]
    assert results[0] == results[1]
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(path)


class OfLayers(RegressionModule):
    """Takes a list of objects, which no checkpoint can hold as they are."""

    def __init__(self, layers, scale, **optimization):
        block = ODEBlock(MLPField(2, (4,)), FixedGridSolver("euler", 1))
        super().__init__(block, nn.Sequential(*layers), **optimization)


def test_checkpoints_hold_plain_values_alone(tmp_path):
    layers, data = [nn.Linear(2, 1)], DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)))
    module = OfLayers(layers, np.float32(0.5))
    steps().fit(module, data)
    module.trainer.save_checkpoint(tmp_path / "module.ckpt")
    hparams = torch.load(tmp_path / "module.ckpt", weights_only=True)["hyper_parameters"]
    assert (hparams["scale"], type(hparams["scale"])) == (0.5, float)
    assert "layers" not in hparams
    loaded = OfLayers.load_from_checkpoint(tmp_path / "module.ckpt", layers=layers)
    assert_same(loaded.state_dict(), module.state_dict())


class Narrow(RegressionModule):
    """Sets an argument of its parent, and has layers that cannot be copied."""

    def __init__(self, width=4, **optimization):
        block = ODEBlock(MLPField(2, (width,)), FixedGridSolver("euler", 1))
        head = prune.l1_unstructured(nn.Linear(2, 1), "weight", 1)
        super().__init__(block, head, lr_interval="step", **optimization)


def test_a_subclass_is_built_again_from_its_own_arguments(tmp_path):
    data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)))
    steps().fit(module := Narrow(width=6), data)
    module.trainer.save_checkpoint(tmp_path / "module.ckpt")
    assert dict(module.hparams) == {"width": 6}
    loaded = Narrow.load_from_checkpoint(tmp_path / "module.ckpt")
    assert_same(loaded.state_dict(), module.state_dict())


def test_several_loaders_of_one_evaluation_are_refused():
    class Indexed(OfLayers):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)))
    with pytest.raises(ValueError, match="Expected one loader, as each metric"):
        steps().validate(Indexed([nn.Linear(2, 1)], 1.0), [data, data], verbose=False)


def test_a_schedule_that_would_end_the_training_is_refused():
    cycle = partial(OneCycleLR, max_lr=0.1, total_steps=5)
    data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)))
    module = OfLayers([nn.Linear(2, 1)], 1.0, lr_scheduler=cycle, lr_interval="step")
    steps(max_steps=5).fit(module, data)
    with pytest.raises(ValueError, match=r"training has, 6, but OneCycleLR has total_steps=5"):
        steps(max_steps=6).fit(module, data)


def test_another_optimiser_than_the_checkpoints_is_refused(tmp_path):
    data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)))
    module = OfLayers([nn.Linear(2, 1)], 1.0, optimizer=torch.optim.SGD)
    steps(max_steps=1).fit(module, data)
    module.trainer.save_checkpoint(tmp_path / "sgd.ckpt")
    message = "by Adam, but its optimiser has no betas, eps"
    with pytest.raises(ValueError, match=message):
        steps().fit(OfLayers([nn.Linear(2, 1)], 1.0), data, ckpt_path=tmp_path / "sgd.ckpt")


def test_evaluate_gives_the_training_loss(case, monkeypatch):
    without = {name: 0.0 for name in case.plain if name in ("kinetic_weight", "jacobian_weight")}
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

    steps(Record()).fit(case.build(**without), case.data())
    assert len(losses) == 4
    assert losses[::2] == losses[1::2]


def test_checkpoint_of_a_module_built_by_the_cli(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "class_path": f"steer_lightning.modules.{case.module.__name__}",
            "init_args": {
                **case.config,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
                "lr_scheduler": schedule,
                "lr_interval": "step",
            },
        },
        "data": {"class_path": f"{case.data.__module__}.{case.data.__name__}"},
        "checkpoint": {"dirpath": "checkpoints"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module = cli.main(["fit", "--config", "config.yaml"]).model
    loaded = case.module.load_from_checkpoint("checkpoints/last.ckpt", weights_only=True)
    assert_same(loaded.state_dict(), module.state_dict())
    configured = loaded.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert configured["optimizer"].defaults["lr"] == 0.5
    assert configured["lr_scheduler"]["scheduler"].step_size == 3
    assert configured["lr_scheduler"]["interval"] == "step"


def test_a_schedule_that_looks_at_a_metric_names_it():
    flow = CNF(ConcatSquashField(2, (4,)), (2,))
    module = CNFModule(flow, lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/nll"))
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == "val/nll"


@pytest.mark.parametrize("as_callback", [False, True])
def test_lightnings_learning_rate_finder(as_callback, tmp_path):
    module = CNFModule(  # whose rate of 1e-3 is reached from a quarter of it in two steps
        CNF(ConcatSquashField(2, (4,)), (2,)),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, 2),
        lr_interval="step",
    )
    record, data = RecordRates(), CASES["cnf"].data()
    finder = LearningRateFinder(num_training_steps=24, early_stop_threshold=None)
    callbacks = [finder, record] if as_callback else [record]
    trainer = steps(*callbacks, max_steps=4, default_root_dir=tmp_path)
    if not as_callback:
        Tuner(trainer).lr_find(module, data, num_training=24, early_stop_threshold=None)
        record.rates.clear()
    trainer.fit(module, data)
    assert module.lr not in (None, 1e-3)
    factors = [0.25, 0.625, 1.0, 1.0]  # the schedule begins at the rate found
    assert record.rates == pytest.approx([module.lr * factor for factor in factors])


def test_the_default_optimizer():
    module = CASES["cnf"].build()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.parameters()))


def test_the_noise_of_a_second_training_has_a_seed_of_its_own(monkeypatch):
    case = next(c for c in CASES.values() if issubclass(c.module, StochasticTaskModule))
    module, found = case.build(), []
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        steps().fit(module, case.data())
        module.on_save_checkpoint(checkpoint := {})
        found.append(checkpoint["noise"])
    assert [noise["seed"] for noise in found] == [1, 2]
    assert found[0]["batches"] == found[1]["batches"]


def test_all_closures_of_a_batch_have_the_same_noise(monkeypatch):
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            return super().step(closure)

    case = next(c for c in CASES.values() if issubclass(c.module, StochasticTaskModule))
    module, found = case.build(), []
    noise_stream = module.noise_stream

    def record(*key):
        found.append(key)
        return noise_stream(*key)

    monkeypatch.setattr(module, "noise_stream", record)
    monkeypatch.setattr(module, "configure_optimizers", lambda: Twice(module.parameters(), 0.01))
    steps().fit(module, case.data())
    assert [key for key in found if key[0] == "train"] == [("train", n) for n in (0, 0, 1, 1)]


def test_the_noise_of_a_batch_that_did_not_end_is_drawn_again():
    module, counts = StochasticTaskModule(), []
    for _ in range(2):
        module.next_training_stream()
        for end in (lambda: None, module.on_train_batch_end):
            end()
            module.on_save_checkpoint(checkpoint := {})
            counts.append(checkpoint["noise"]["batches"])
    assert counts == [0, 1, 1, 2]
