"""Checkpoints of another config."""

import warnings

import pytest
import torch

from steer_lightning.modules import ClassifierModule
from steer_lightning.modules.compatibility import config_differences
from steer_lightning.nn import ConvField, ODEBlock
from tests.modules.cases import CASES, Digits


def build(filters=4, num_classes=3, hidden=0, **plain):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 16) for _ in range(hidden)]
    head = torch.nn.Sequential(*layers, torch.nn.Linear(16, num_classes))
    return ClassifierModule(
        ODEBlock(ConvField(1, filters)), head, num_classes=num_classes, **plain
    )


@pytest.fixture
def path(trainer, tmp_path):
    trainer.fit_loop.epoch_loop.max_steps = 1
    trainer.fit(build(), Digits())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_other_shapes(trainer, path):
    with pytest.raises(
        ValueError,
        match=r"same network as ClassifierModule has now, but got other weights: .*"
        r"block\.vector_field\.conv1\.bias \(4,\) where the model has \(8,\), .*written by "
        r"steer_lightning 0\.1\.0, this is 0\.1\.0\. Run it with the config\.yaml",
    ):
        trainer.test(build(filters=8), Digits(), ckpt_path=path, weights_only=True)


def test_other_layers(trainer, path):
    with pytest.raises(ValueError, match=r"not in the checkpoint: head\.1\.bias, head\.1\.weight"):
        trainer.fit(build(hidden=1), Digits(), ckpt_path=path)


def test_weights_that_are_gone(trainer, path, tmp_path):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["old"] = torch.zeros(1)
    del checkpoint["steer_lightning_version"]
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"not in the model: old\..*by steer_lightning an older"):
        trainer.test(build(), Digits(), ckpt_path=tmp_path / "b.ckpt")


def test_the_configs_are_compared(trainer, path):
    with pytest.raises(
        ValueError, match=r"The configs differ in num_classes \(was 3, is 4\)\. The checkpoint"
    ):
        trainer.test(build(num_classes=4), Digits(), ckpt_path=path)


def test_one_may_look_away(trainer, path):
    class Lenient(ClassifierModule):
        strict_loading = False

    module = Lenient(ODEBlock(ConvField(1, 4)), build().head, num_classes=3)
    module.more = torch.nn.Linear(1, 1)
    trainer.test(module, Digits(), ckpt_path=path, verbose=False)


def test_loading_without_strictness(path):
    module = build(hidden=0)
    parts = {"block": module.block, "head": module.head}
    torch.nn.init.zeros_(module.head[0].weight)
    module.head.extra = torch.nn.Linear(1, 1)
    loaded = ClassifierModule.load_from_checkpoint(path, strict=False, num_classes=3, **parts)
    assert loaded.head[0].weight.any()
    with pytest.raises(
        ValueError, match=r"not in the checkpoint: head\.extra\.bias.*load what fits"
    ):
        ClassifierModule.load_from_checkpoint(path, num_classes=3, **parts)
    with pytest.raises(RuntimeError, match="Missing key"):  # torch's own, of any other weights
        loaded.load_state_dict({})


def test_going_on_with_other_settings_is_warned_of(trainer, path):
    with pytest.warns(
        UserWarning,
        match=r"another config than the checkpoint's: lr_interval \(was epoch, is step\)\. The "
        r"optimiser's own settings, .* are the checkpoint's",
    ):
        trainer.fit(build(lr_interval="step"), Digits(), ckpt_path=path)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_same_config_hears_nothing(name, trainer, tmp_path):
    case = CASES[name]
    trainer.fit_loop.epoch_loop.max_steps = 1
    trainer.fit(case.build(), case.data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*another config.*")
        trainer.fit(case.build(), case.data(), ckpt_path=tmp_path / "a.ckpt")
        trainer.test(case.build(), case.data(), ckpt_path=tmp_path / "a.ckpt", verbose=False)


@pytest.mark.parametrize(
    ("saved", "now", "expected"),
    [
        ({"a": 1, "b": {"init_args": {"c": [1]}}}, {"a": 1, "b": {"init_args": {"c": [1]}}}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"_instantiator": 1}, {}, []),
        ({"f": print}, {"f": len}, []),
        ({"b": {"init_args": {"c": 1}}}, {"b": {"init_args": {}}}, ["b.c (was 1, is absent)"]),
        ({}, {"x": None}, ["x (was absent, is None)"]),
    ],
)
def test_differences(saved, now, expected):
    assert config_differences(saved, now) == expected
