"""Every file under configs/, whatever comes later."""

import contextlib
import io
from functools import cache
from pathlib import Path

import pytest
import yaml

import cli
from tests.helpers.mnist_files import write_mnist

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATHS = sorted(CONFIGS.glob("*/*.yaml"))
NAMES = [str(path.relative_to(CONFIGS).with_suffix("")) for path in PATHS]
PAIRS = [name for name in NAMES if name.endswith("_steer")]

MODEL, DATA = "--model.init_args", "--data.init_args"
FIELD = f"{MODEL}.block.init_args.vector_field.init_args"

# What makes a run small: width, number of samples, files that the test has written.
OVERRIDES = {
    "cnf": [
        f"{MODEL}.flow.init_args.vector_field.init_args.hidden=[8,8]",
        f"{MODEL}.flow.init_args.solver.init_args.method=euler",  # pictures take many solves
        f"{DATA}.n_train=8",
        f"{DATA}.n_val=8",
        f"{DATA}.n_test=8",
        f"{DATA}.batch_size=4",
    ],
    "classifier": [
        f"{FIELD}.filters=2",
        f"{DATA}.data_dir=mnist",
        f"{DATA}.val_size=10",
        f"{DATA}.batch_size=4",
        f"{DATA}.eval_batch_size=4",
    ],
    "stiff": [
        f"{MODEL}.vector_field.init_args.hidden=[8]",
        f"{DATA}.n_starts=8",
        f"{DATA}.batch_size=4",
        f"{DATA}.n_test=5",
    ],
}
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    return tmp_path


@cache
def print_config(name):
    output = io.StringIO()
    with pytest.raises(SystemExit) as done, contextlib.redirect_stdout(output):
        cli.main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config"])
    assert done.value.code in (0, None)
    return output.getvalue()


def parse(name):
    """The whole configuration with every default, as the parser prints it."""
    return yaml.safe_load(print_config(name))


def is_steer(callback):
    return callback["class_path"].rsplit(".", 1)[-1] == "SteerCallback"


def test_there_are_configs():
    assert {Path(name).parent.name for name in NAMES} == set(OVERRIDES)
    assert PAIRS


@pytest.mark.parametrize("name", NAMES)
def test_parses_in_full(name):
    config = parse(name)
    for part in ("model", "data"):
        assert config[part]["init_args"]  # defaults are filled in
    assert config["seed_everything"] is not None
    assert config["trainer"]["logger"]["init_args"]["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_has_a_steer_config_and_the_reverse(name):
    other = name.removesuffix("_steer") if name.endswith("_steer") else f"{name}_steer"
    assert other in NAMES


@pytest.mark.parametrize("name", PAIRS)
def test_steer_config_differs_by_the_callback_alone(name):
    steer, baseline = parse(name), parse(name.removesuffix("_steer"))
    callbacks = steer["trainer"]["callbacks"]
    assert sum(map(is_steer, callbacks)) == 1
    assert not any(map(is_steer, baseline["trainer"]["callbacks"]))
    steer["trainer"]["callbacks"] = [c for c in callbacks if not is_steer(c)]
    for config in (steer, baseline):
        del config["trainer"]["logger"]["init_args"]["name"]
    assert steer == baseline


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, folder):
    task = name.split("/")[0]
    write_mnist(folder / "mnist")
    config = str(CONFIGS / f"{name}.yaml")
    for command in ("fit", "test"):
        main = cli.main(
            [command, "--config", config, "--trainer.fast_dev_run=1", *QUIET, *OVERRIDES[task]]
        )
        stage = {"fit": "val", "test": "test"}[command]
        metrics = main.trainer.callback_metrics
        # What checkpoints are chosen by is logged, in validation and as the test's counterpart.
        monitor = parse(name)["checkpoint"]["monitor"].replace("val/", f"{stage}/")
        assert metrics[monitor].isfinite()
        assert metrics[f"{stage}/nfe_forward"] > 0
