"""What the command line refuses, and what it says."""

import re
import runpy
import signal
from argparse import ArgumentError
from pathlib import Path

import pytest

import cli
from datamodules.files import download, whole
from steer_lightning.callbacks import LastCheckpoint
from tests.cli.running import CONFIGS, QUIET, mnist_config, of, refuse, toy_config, write
from tests.helpers.mnist_files import write_mnist

FLOW = "model.init_args.flow.init_args"
PUSHES = {"stiffness": {"weight": -1.0}}


def change(path, value):
    """The toy's config with one value changed."""
    config = toy_config()
    *parents, last = path.split(".")
    part = config
    for name in parents:
        part = part[name]
    part[last] = value
    return config


WEIGHED = change("penalties", {"local_error": 1.0})


@pytest.mark.parametrize(
    ("config", "option", "message"),
    [
        ({}, "--data.n_trian=3", "'n_trian' is not accepted; did you mean n_train?"),
        ({}, "--steer.scop=rank", "SteerCallback': Option 'scop' is not accepted; did you mean "),
        ({}, "--penalties.local_eror=1", "--local_eror.weight=1; did you mean local_error?"),
        ({}, "--penalties.local_error.form=one_step", "arguments are required: weight"),
        ({}, "--penalties.kinetic_energy.weight.end=1", "required: start, length"),
        ({}, "--penalties.kinetic_energy=much", "Given value: much"),
        (WEIGHED, "--penalties.local_error.form=one_step", "arguments are required: weight"),
        (WEIGHED, "--penalties.local_error.weight.end=1", "Parser key \"local_error\": Expected"),
        (change("penalties", {"local_eror": 1.0}), "", "accepted; did you mean local_error?"),
        (change("penalties", ["local_error"]), "", "expected settings by name, which --help"),
        (change("penalties", 1.0), "", "expected settings by name, which --help lists Given"),
        ({}, "--optimizer=Adamm", "Adamm; did you mean Adam"),
        ({}, "--trainer.callbacks+=EarlyStoping", "did you mean EarlyStopping"),
        ({}, "--ckpt_path=nowhere.ckpt", "but there is no 'nowhere.ckpt'"),
        ({}, "--ckpt_path=last", "but there is no 'last'"),
        ({}, "--steeer.b=0.5", "--steeer.b=0.5; did you mean steer?"),
        ({}, f"--{FLOW}.data_att=t0", "'data_att' is not accepted; did you mean data_at?"),
        ({}, "--model=CNFModul", "CNFModul; did you mean CNFModule"),
        (change("trainer.max_epoch", 3), "", "did you mean trainer.max_epochs"),
        (change("modle", 1), "", "'modle'; did you mean model?"),
        (change("model.init_args.flw", 1), "", "'flw' is not accepted; did you mean flow"),
        (change("data.init_args.n_trian", 3), "", "ToyDensityDataModule': Option 'n_trian'"),
        (change("steer", {}), "", "the following arguments are required: b"),
        (change("steer.distribution", "unifrom"), "", "unifrom; did you mean uniform?"),
        (change("checkpoint.moniter", "x"), "", "did you mean checkpoint.monitor"),
        ({}, "--model=steer_lightning.modules.CNFModul", "did you mean CNFModule"),
        ({}, "--model=no_such_package.Module", "no_such_package"),
        ({}, "--model=torch.nn.Linear", "LightningModule Given value: torch.nn.Linear"),
        ({}, "--config=nothing.yaml", "nothing.yaml"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_in_one_line(config, option, message, capsys):
    said = refuse(
        ["fit", "--config", write(config or toy_config()), *filter(None, [option])], capsys
    )
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_the_variant_of_imagenet_must_be_said(capsys):
    config = (CONFIGS / "cnf/imagenet32_rnode.yaml").read_text()
    Path("config.yaml").write_text(config.replace("variant:", "data_dir:"))
    assert "variant" in refuse(["fit", "--config", "config.yaml"], capsys)


def test_an_unknown_command(capsys):
    assert "; did you mean fit?" in refuse(["fti"], capsys)


def test_a_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("STEER_DEBUG", "1")
    with pytest.raises(ArgumentError, match="max_epoch"):
        cli.main(["fit", "--config", write(change("trainer.max_epoch", 3))])


@pytest.fixture
def script(monkeypatch):
    """A function that runs the command line's file on a config."""

    def run(config):
        monkeypatch.setattr("sys.argv", ["cli.py", "fit", "--config", write(config), *QUIET])
        runpy.run_path(cli.__file__, run_name="__main__")

    return run


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (mnist_config(), r"Expected the MNIST file .*--data\.data_dir"),
        (change("steer.b", 1.0), r"Expected 0 <= b < \|t1 - t0\| = 1, .* b = 1\."),
        (change("steer.b", -1), "Expected `b` to be"),
        (change("seed_everything", -1), "-1 is not in bounds"),
        (change(f"{FLOW}.t_span", [1.0, 1.0]), "Expected finite t0 != t1"),
        (change("penalties", PUSHES), ".*weight of Stiffness to be"),
        (change("penalties", {"stiffness": -1}), "Expected the weight of Stiffness"),
        (change("data.init_args.name", "8gausians"), "mean '8gaussians'"),
        (change("trainer.fast_dev_run", -1), "fast_dev_run=-1"),
        (change("trainer.strategy", "nope"), "strategy='nope'"),
        (change("model.init_args.optimizer", of("torch.optim.SGD", lr=-1)), "Invalid learning"),
    ],
)
def test_a_refused_run_ends_in_one_line(config, message, script, folder, capsys, recwarn):
    with pytest.raises(SystemExit) as ended:
        script(config)
    assert ended.value.code == 2
    assert not list(folder.rglob("*.ckpt"))
    assert not [w for w in recwarn if "args parameter" in str(w.message)]
    *_, line = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}.* .STEER_DEBUG=1 shows where.$", line)


def test_a_failed_download_is_refused_and_other_failures_are_not(folder):
    with pytest.raises(OSError, match="Expected to download") as failed:
        download("https://127.0.0.1:1/file", folder / "data", whole)
    assert cli.is_refusal(failed.value)
    with pytest.raises(IsADirectoryError) as other:
        folder.read_text()
    assert cli.is_refusal(other.value)  # it names the file
    for error in (RuntimeError, ValueError, TypeError, OSError):
        with pytest.raises(error) as mistake:
            raise error
        assert not cli.is_refusal(mistake.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_its_own_exit_code(script, folder, monkeypatch, number):
    start = LastCheckpoint.on_train_start

    def stop(*arguments):
        start(*arguments)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(number)

    monkeypatch.setattr(LastCheckpoint, "on_train_start", stop)
    with pytest.raises(SystemExit) as ended:
        script(toy_config())
    assert ended.value.code == 128 + number
    assert bool([*folder.rglob("last.ckpt")]) is (number == signal.SIGTERM)


def test_a_refused_run_shows_where_on_demand(script, monkeypatch):
    monkeypatch.setenv("STEER_DEBUG", "1")
    with pytest.raises(ValueError, match=r"Expected 0 <= b < \|t1 - t0\| = 1"):
        script(change("steer.b", 1.0))


def test_truncated_data(folder):
    write_mnist(folder / "mnist")
    images = folder / "mnist" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte to be an uncompressed"):
        cli.main(["fit", "--config", write(mnist_config()), *QUIET])
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "mnist"]
