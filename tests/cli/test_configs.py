"""Every file under configs/, whatever comes later."""

import math
import re

import pytest
import yaml

import cli
from reproduce.catalogue import EXPERIMENTS
from reproduce.experiments import Variant
from reproduce.runs import Run, Settings
from steer_lightning import SteerCallback
from tests.cli.running import CONFIGS, DATA, FLOW, MODEL, NETWORK, QUIET, callbacks
from tests.helpers.data_sets import write_every_data_set

NAMES = [str(p.relative_to(CONFIGS).with_suffix("")) for p in sorted(CONFIGS.glob("*/*.yaml"))]
SMOKE = {variant.config for make in EXPERIMENTS.values() for variant in make("smoke").variants}

BATCHES = [f"{DATA}.batch_size=4", f"{DATA}.eval_batch_size=4"]
# What makes a run small, by the beginning of a config's name.
SMALL = {
    "cnf/": [
        f"{FLOW}.vector_field.init_args.hidden=[2]",
        f"{FLOW}.eval_solver.init_args.rtol=1.0",
        f"{FLOW}.eval_solver.init_args.atol=1.0",
        f"{MODEL}.test_draws=2",
        f"{DATA}.val_size=4",
        *BATCHES,
    ],
    "classifier/": [f"{DATA}.val_size=10", *BATCHES],
    "latent_ode/": [
        f"{NETWORK}.n_hidden=3",
        f"{NETWORK}.recognition_hidden=[4]",
        f"{DATA}.val_size=4",
        f"{DATA}.batch_size=4",
    ],
    "latent_ode/mujoco": [f"{DATA}.n_trajectories=40", f"{DATA}.n_points=20"],
    "latent_ode/periodic": [f"{DATA}.n_trajectories=40"],
    "latent_ode/physionet": [f"{DATA}.time_bin=1.0"],
    "stiff/": [
        f"{MODEL}.vector_field.init_args.hidden=[8]",
        f"{DATA}.batch_size=4",
        f"{DATA}.n_test=5",
    ],
    "stiff/chapra": [f"{DATA}.n_starts=8"],
    "stiff/robertson": [f"{DATA}.n_points=8"],
    "stiff/van_der_pol": [f"{DATA}.n_points=8"],
}


def read(name):
    return (CONFIGS / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_says_its_name_and_leaves_steer_to_the_command_line(name):
    config = yaml.safe_load(read(name))
    assert config["trainer"]["logger"]["init_args"]["name"] == name
    assert "steer" not in config
    assert config["checkpoint"]["monitor"].startswith("val/")
    if name.startswith("cnf/") and "toy" not in name:
        assert config["trainer"]["gradient_clip_val"] == 10.0
        assert config["model"]["init_args"]["lr_interval"] == "step"


@pytest.mark.parametrize(
    ("name", "n_parameters"), [("mnist_node", 85_316), ("mnist_anode", 85_462)]
)
def test_classifiers_have_the_papers_sizes(name, n_parameters):
    config = ["--config", str(CONFIGS / f"classifier/{name}.yaml")]
    model = cli.main([*config, *QUIET], run=False).model
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == n_parameters


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        write_every_data_set(folder, patch)
        yield folder


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMOKE])
def test_runs_with_steer(name, data_dir, tmp_path):
    """Fit and test of each config that no experiment at scale ``smoke`` runs."""
    small = [option for key in SMALL if name.startswith(key) for option in SMALL[key]]
    if name.startswith("classifier/"):
        block = ".block.init_args" * (1 + ("anode" in name))
        small.append(f"{MODEL}{block}.vector_field.init_args.filters=2")
    (steer,) = re.findall(r"^# .*(--steer\.b=[\w.]+)", read(name), re.M)
    run = Run(Variant("", name, (*small, steer)), 0, Settings("smoke", tmp_path, data_dir))
    main = cli.main(["fit", *run.arguments(), "--trainer.fast_dev_run=1", *QUIET])
    found = {"val": dict(main.trainer.callback_metrics)}
    (found["test"],) = main.trainer.test(main.model, main.datamodule, verbose=False)
    # What checkpoints are chosen by is logged, in validation and as the test's counterpart.
    monitor = main.config.fit.checkpoint.monitor.removeprefix("val/")
    for stage, metrics in found.items():
        assert math.isfinite(metrics[f"{stage}/{monitor}"])
        assert metrics[f"{stage}/nfe_forward"] > 0
    assert any(key.startswith("steer/") for key in found["val"])
    assert len(callbacks(main, SteerCallback)) == 1
