"""Every file under configs/, whatever comes later."""

import contextlib
import io
import math
import re
from functools import cache

import pytest
import yaml

import cli
from steer_lightning import SteerCallback
from steer_lightning.nn import RNNEncoder
from tests.cli.running import CONFIGS, DATA, FLOW, MODEL, NETWORK, QUIET
from tests.helpers.activity_files import write_activity
from tests.helpers.cifar_files import accept_cifar10, write_cifar10
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.imagenet_files import accept_imagenet32, write_imagenet32
from tests.helpers.mnist_files import write_mnist
from tests.helpers.physionet_files import accept_physionet, write_physionet
from tests.helpers.svhn_files import accept_svhn, write_svhn

PATHS = sorted(CONFIGS.glob("*/*.yaml"))
NAMES = [str(path.relative_to(CONFIGS).with_suffix("")) for path in PATHS]
LATENT_ODES = [n for n in NAMES if n.startswith("latent_ode/") and not n.endswith("_rnn")]
IMAGE_FLOWS = [name for name in NAMES if name.startswith("cnf/") and "toy" not in name]

SMALL_FLOW = [
    f"{FLOW}.vector_field.init_args.hidden=[2]",
    f"{FLOW}.eval_solver.init_args.rtol=1.0",
    f"{FLOW}.eval_solver.init_args.atol=1.0",
    f"{MODEL}.test_draws=2",
    f"{DATA}.val_size=4",
    f"{DATA}.batch_size=2",
    f"{DATA}.eval_batch_size=2",
]

TWO_FILTERS = "vector_field.init_args.filters=2"
SMALL_CLASSIFIER = [
    f"{MODEL}.block.init_args.{TWO_FILTERS}",
    f"{DATA}.val_size=10",
    f"{DATA}.batch_size=4",
    f"{DATA}.eval_batch_size=4",
]
SMALL_AUGMENTED = [f"{MODEL}.block.init_args.block.init_args.{TWO_FILTERS}", *SMALL_CLASSIFIER[1:]]

# The tiny files that a series' config reads, or how few series it makes.
SERIES = {
    "activity": [f"{DATA}.data_dir=activity", f"{DATA}.val_size=4"],
    "mujoco": [f"{DATA}.cache_dir=hopper", f"{DATA}.n_trajectories=40", f"{DATA}.n_points=20",
               f"{DATA}.val_size=8"],
    "periodic": [f"{DATA}.n_trajectories=40", f"{DATA}.val_size=8"],
    "physionet": [f"{DATA}.data_dir=physionet", f"{DATA}.val_size=8", f"{DATA}.time_bin=1.0"],
}  # fmt: skip

# What makes a run small: width, number of samples, files that the test has written. The longest
# key that a config's name begins with counts.
OVERRIDES = {
    **{
        f"classifier/{data}_{model}": [*small, f"{DATA}.data_dir={data}"]
        for data in ("mnist", "cifar10", "svhn")
        for model, small in (("node", SMALL_CLASSIFIER), ("anode", SMALL_AUGMENTED))
    },
    "cnf/toy": [
        f"{FLOW}.vector_field.init_args.hidden=[8,8]",
        f"{FLOW}.solver.init_args.rtol=1.0",  # plots take many solves
        f"{FLOW}.solver.init_args.atol=1.0",
        f"{DATA}.n_train=8",
        f"{DATA}.n_val=8",
        f"{DATA}.n_test=8",
        f"{DATA}.batch_size=4",
    ],
    "cnf/mnist": [*SMALL_FLOW, f"{DATA}.data_dir=mnist"],
    "cnf/cifar10": [*SMALL_FLOW, f"{DATA}.data_dir=cifar10"],
    "cnf/imagenet32": [*SMALL_FLOW, f"{DATA}.data_dir=imagenet32"],
    **{
        f"latent_ode/{name}": [
            f"{NETWORK}.n_hidden=3",
            f"{NETWORK}.recognition_hidden=[4]",
            f"{DATA}.batch_size=4",
            *arguments,
        ]
        for name, arguments in SERIES.items()
    },
    "stiff": [
        f"{MODEL}.vector_field.init_args.hidden=[8]",
        f"{DATA}.n_starts=8",
        f"{DATA}.batch_size=4",
        f"{DATA}.n_test=5",
    ],
}


def key_of(name):
    return max((key for key in OVERRIDES if name.startswith(key)), key=len)


@pytest.fixture
def files(folder, monkeypatch):
    """Tiny files of every data set, which count as genuine."""
    write_mnist(folder / "mnist")
    write_cifar10(folder / "cifar10")
    accept_cifar10(monkeypatch, folder / "cifar10")
    write_svhn(folder / "svhn")
    accept_svhn(monkeypatch, folder / "svhn")
    write_activity(folder / "activity")
    write_hopper(folder / "hopper")
    without_dm_control(monkeypatch)
    write_physionet(folder / "physionet")
    accept_physionet(monkeypatch)
    write_imagenet32(folder / "imagenet32")
    accept_imagenet32(monkeypatch)


@cache
def parse(name):
    """The whole configuration with every default, as the parser prints it."""
    output = io.StringIO()
    with pytest.raises(SystemExit) as done, contextlib.redirect_stdout(output):
        cli.main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config"])
    assert done.value.code in (0, None)
    return yaml.safe_load(output.getvalue())


def steer_of(name):
    """The option that a config's comment names."""
    (option,) = re.findall(
        r"^# .*(--steer\.b=[\w.]+)", (CONFIGS / f"{name}.yaml").read_text(), re.M
    )
    return option


def test_every_override_has_its_configs():
    assert {key_of(name) for name in NAMES} == set(OVERRIDES)
    assert IMAGE_FLOWS


@pytest.mark.parametrize("name", NAMES)
def test_parses_in_full(name):
    config = parse(name)
    for part in ("model", "data"):
        assert config[part]["init_args"]  # defaults are filled in
    assert config["seed_everything"] is not None
    assert config["trainer"]["logger"]["init_args"]["name"] == name
    assert config["steer"] is None


@pytest.mark.parametrize("name", IMAGE_FLOWS)
def test_flows_of_images_clip_gradients_and_count_steps(name):
    config = parse(name)
    assert config["trainer"]["gradient_clip_val"] == 10.0
    assert config["model"]["init_args"]["lr_interval"] == "step"


@pytest.mark.parametrize(
    ("name", "n_parameters"), [("mnist_node", 85_316), ("mnist_anode", 85_462)]
)
def test_classifiers_have_the_papers_sizes(name, n_parameters, files):
    config = ["--config", str(CONFIGS / f"classifier/{name}.yaml"), f"{DATA}.data_dir=mnist"]
    sizes = [f"{DATA}.val_size=10", f"{DATA}.eval_batch_size=2", "--trainer.fast_dev_run=1"]
    main = cli.main(["validate", *config, *QUIET, *sizes])
    assert sum(p.numel() for p in main.model.parameters()) == n_parameters


def run(name, *arguments):
    config = ["--config", str(CONFIGS / f"{name}.yaml"), "--trainer.fast_dev_run=1"]
    main = cli.main(["fit", *config, *QUIET, *OVERRIDES[key_of(name)], *arguments])
    found = {"val": dict(main.trainer.callback_metrics)}
    (found["test"],) = main.trainer.test(main.model, main.datamodule, verbose=False)
    # What checkpoints are chosen by is logged, in validation and as the test's counterpart.
    monitor = parse(name)["checkpoint"]["monitor"].removeprefix("val/")
    for stage, metrics in found.items():
        assert math.isfinite(metrics[f"{stage}/{monitor}"])
        assert metrics[f"{stage}/nfe_forward"] > 0
    steered = any(key.startswith("steer/") for key in found["val"])
    callbacks = [c for c in main.trainer.callbacks if isinstance(c, SteerCallback)]
    assert len(callbacks) == steered == any(a.startswith("--steer.") for a in arguments)
    return main


@pytest.mark.parametrize("name", NAMES)
def test_runs_with_steer(name, files):
    run(name, steer_of(name))


@pytest.mark.parametrize("name", LATENT_ODES)
def test_runs_with_the_other_encoder(name, files):
    main = run(name, f"{NETWORK}.encoder=rnn")
    assert isinstance(main.model.network.encoder, RNNEncoder)
