"""Where runs of the command line write, and what they say."""

from pathlib import Path

import pytest
import yaml
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

import cli
from steer_lightning.callbacks import SolverProgressBar
from tests.cli.running import QUIET, toy_config, write

# What Lightning and PyTorch say in every run.
IDLE = "LeafSpec", "`weights_only` was not set", "Tip: For seamless cloud logging"


def run(command, *arguments, b=0.5):
    config = write(toy_config(steer={"b": b}), "given.yaml")
    return cli.main([command, "--config", config, *arguments, *QUIET]).trainer


def test_validate_test_and_predict_write_beside_their_training_run(folder, caplog, recwarn):
    fit = run("fit", "--trainer.callbacks+=FlowPlot")
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "STEER moves these end times" in said
    assert not any(words in said for words in IDLE)
    place = folder / fit.log_dir
    trained = {*place.rglob("*")}
    last = Path(fit.log_dir, "checkpoints", "last.ckpt")
    for command in ("validate", "test", "predict"):
        trainer = run(command, "--ckpt_path", str(last), "--trainer.callbacks+=FlowPlot")
        assert folder / trainer.log_dir == place
    written = {*place.rglob("*")} - trained
    assert {p.name for p in written if "tfevents" not in p.name} == {
        "config_validate.yaml", "config_test.yaml", "config_predict.yaml",
        "flow_test.png", "flow_test.svg",
    }  # fmt: skip
    assert [p.name for p in place.parent.iterdir()] == ["version_0"]


def test_without_a_logger_all_lies_in_the_folder_of_the_run(folder):
    def settings(path):
        return yaml.safe_load(path.read_text())["steer"]["init_args"]["b"]

    off = "--trainer.logger=false", "--trainer.callbacks+=FlowPlot"
    for b in (0.25, 0.5):
        run("fit", *off, b=b)
    run("test", *off, "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt", b=0.25)
    run("fit", *off, "--trainer.default_root_dir=mine", "--trainer.max_epochs=1")
    first, second, mine = folder / "logs/run/version_0", folder / "logs/run/version_1", "mine"
    assert (settings(first / "config.yaml"), settings(second / "config.yaml")) == (0.25, 0.5)
    assert {p.name for p in first.iterdir()} == {
        "checkpoints", "config.yaml", "config_test.yaml", "plots",
    }  # fmt: skip
    files = {p.relative_to(folder).parts[:3] for p in folder.rglob("*") if p.is_file()}
    assert {parts[:1] for parts in files} == {("logs",), (mine,), ("given.yaml",)}
    assert {parts for parts in files if parts[0] == mine} == {
        (mine, "version_0", name) for name in ("checkpoints", "config.yaml", "plots")
    }


def test_no_run_overwrites_the_config_of_another(folder):
    same = "--trainer.logger.version=same", "--trainer.max_epochs=1"
    for b in (0.25, 0.5, 0.5):
        trainer = run("fit", *same, b=b)
    found = {
        p.name: yaml.safe_load(p.read_text())["steer"]["init_args"]["b"]
        for p in Path(trainer.log_dir).glob("config*.yaml")
    }
    assert found == {"config.yaml": 0.25, "config_1.yaml": 0.5}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [SolverProgressBar]),
        (["--trainer.callbacks+=TQDMProgressBar"], [TQDMProgressBar]),
        (["--trainer.enable_progress_bar=false"], []),
    ],
)
def test_one_progress_bar_where_one_is_wanted(arguments, expected):
    config = write(toy_config())
    main = cli.main(["--config", config, "--trainer.accelerator=cpu", *arguments], run=False)
    bars = [type(callback) for callback in main.trainer.callbacks]
    assert [bar for bar in bars if issubclass(bar, ProgressBar)] == expected
