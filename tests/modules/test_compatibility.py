"""Checkpoints of another network."""

import io
import zipfile

import pytest
import torch

from steer_lightning.modules import ClassifierModule
from steer_lightning.modules.compatibility import config_differences
from steer_lightning.nn import ConvField, ODEBlock
from tests.helpers.models import tiny_trainer
from tests.modules.cases import Digits


def build(filters=4, num_classes=3, hidden=0, **plain):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 16) for _ in range(hidden)]
    head = torch.nn.Sequential(*layers, torch.nn.Linear(16, num_classes))
    return ClassifierModule(
        ODEBlock(ConvField(1, filters)), head, num_classes=num_classes, **plain
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    trainer, path = tiny_trainer(max_steps=1), tmp_path_factory.mktemp("saved") / "a.ckpt"
    trainer.fit(build(), Digits())
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("run", ["fit", "test"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"filters": 8},
            r"same network as ClassifierModule has now, but got other weights: .*"
            r"block\.vector_field\.conv1\.bias \(4,\) where the model has \(8,\), .*Run it with "
            r"the config\.yaml",
        ),
        ({"hidden": 1}, r"not in the checkpoint: head\.1\.bias, head\.1\.weight"),
        ({"num_classes": 4}, r"The configs differ in num_classes \(was 3, is 4\)\. Run it"),
    ],
)
def test_another_network_is_refused_before_it_trains(trainer, path, run, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(trainer, run)(build(**arguments), Digits(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 0


def test_weights_that_are_gone(trainer, path, tmp_path):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["old"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"not in the model: old\. Run it with"):
        trainer.test(build(), Digits(), ckpt_path=tmp_path / "b.ckpt")


def flip(content):
    at = content.index(
        torch.load(io.BytesIO(content))["state_dict"]["head.0.bias"].numpy().tobytes()
    )
    return content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (flip, "the checksum of .* is wrong"),
        (lambda content: content[: len(content) // 2], "empty or cut short"),
        (lambda content: b"", "empty or cut short"),
    ],
)
def test_a_broken_file_is_named_however_it_is_read(trainer, path, tmp_path, breaking, message):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(breaking(path.read_bytes()))
    module = build()
    parts = {"block": module.block, "head": module.head}
    for read in (
        lambda: trainer.fit(module, Digits(), ckpt_path=broken),
        lambda: trainer.test(module, Digits(), ckpt_path=broken),
        lambda: ClassifierModule.load_from_checkpoint(broken, **parts),
    ):
        with pytest.raises(zipfile.BadZipFile, match=f"but {broken} is broken: .*{message}"):
            read()


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
        ValueError, match=r"not in the checkpoint: head\.extra\.bias.*loads what fits"
    ):
        ClassifierModule.load_from_checkpoint(path, num_classes=3, **parts)
    with pytest.raises(RuntimeError, match="Missing key"):  # torch's own, of any other weights
        loaded.load_state_dict({})


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
