"""What the command line refuses, and what it says."""

from pathlib import Path

import pytest

import cli
from tests.cli.running import QUIET, mnist_config, refuse, toy_config, write
from tests.helpers.mnist_files import write_mnist


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["trainer"].update(max_epoch=3), ["max_epoch"]),
        (lambda c: c.update(modle=c["model"]), ["modle"]),
        (lambda c: c["model"]["init_args"].update(flw=1), ["CNFModule", "flw"]),
        (
            lambda c: c["model"]["init_args"]["flow"]["init_args"].update(data_att="t0"),
            ["data_att"],
        ),
        (lambda c: c["data"]["init_args"].update(n_trian=3), ["ToyDensityDataModule", "n_trian"]),
        (lambda c: c["steer"].update(scop="rank"), ["SteerCallback", "scop"]),
        (lambda c: c["steer"].pop("b"), ["SteerCallback", "required"]),
        (lambda c: c["checkpoint"].update(moniter="x"), ["moniter"]),
    ],
)
def test_misspelt_key_in_a_config(change, words, capsys):
    config = toy_config()
    change(config)
    message = refuse(["fit", "--config", write(config)], capsys)
    for word in words:
        assert word in message


def test_misspelt_option(capsys):
    arguments = ["fit", "--config", write(toy_config()), "--data.n_trian=3"]
    assert "n_trian" in refuse(arguments, capsys)


@pytest.mark.parametrize(
    "class_path", ["steer_lightning.modules.CNFModul", "no_such_package.Module", "CNFModul"]
)
def test_unknown_class(class_path, capsys):
    config = toy_config(model={"class_path": class_path})
    assert class_path in refuse(["fit", "--config", write(config)], capsys)


def test_class_of_another_kind(capsys):
    config = toy_config(model={"class_path": "torch.nn.Linear"})
    message = refuse(["fit", "--config", write(config)], capsys)
    assert "torch.nn.Linear" in message
    assert "LightningModule" in message


def test_missing_config_file(capsys):
    assert "nothing.yaml" in refuse(["fit", "--config", "nothing.yaml"], capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["steer"].update(b=-1), "Expected `b` to be"),
        (lambda c: c["steer"].update(distribution="unifrom"), "distribution"),
        (lambda c: c["data"]["init_args"].update(name="8gausians"), "8gaussians"),
        (
            lambda c: c["model"]["init_args"]["flow"]["init_args"].update(t_span=[1.0, 1.0]),
            "Expected finite t0 != t1",
        ),
    ],
)
def test_values_out_of_range_end_before_anything_is_written(change, message, capsys):
    config = toy_config()
    change(config)
    path = write(config)
    with pytest.raises((SystemExit, ValueError)) as error:
        cli.main(["fit", "--config", path, *QUIET])
    assert message in str(error.value) + capsys.readouterr().err
    assert [p.name for p in Path.cwd().iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_missing_data_folder(command):
    path = write(mnist_config())
    with pytest.raises(FileNotFoundError, match=r"(?s)train-images.*--data\.data_dir"):
        cli.main([command, "--config", path, *QUIET])
    assert [p.name for p in Path.cwd().iterdir()] == ["config.yaml"]


def test_truncated_data(folder):
    write_mnist(folder / "mnist")
    images = folder / "mnist" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    path = write(mnist_config())
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte to be an uncompressed"):
        cli.main(["fit", "--config", path, *QUIET])
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "mnist"]


def test_b_that_reaches_t0_ends_before_training(folder):
    config = toy_config(steer={"b": 1.0})
    with pytest.raises(ValueError, match=r"Expected 0 <= b < \|t1 - t0\| = 1, .* got b = 1"):
        cli.main(["fit", "--config", write(config), *QUIET])
    assert not list(folder.rglob("*.ckpt"))
