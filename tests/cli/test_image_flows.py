"""Training, testing and sampling of an image flow from the command line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
from tests.cli.running import CONFIGS, DATA, FLOW, MODEL, QUIET
from tests.helpers.mnist_files import write_mnist

STEER = "--steer.b=0.5"
BLOCKS = [
    *(f"flow.scales.0.{stack}.{i}" for stack in ("before", "after") for i in range(2)),
    *(f"flow.scales.1.before.{i}" for i in range(2)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs a command on the small RNODE, and the data of all runs."""
    mnist = tmp_path_factory.mktemp("mnist")
    write_mnist(mnist, n_train=110)
    config = [
        *("--config", str(CONFIGS / "cnf/mnist_small_rnode.yaml")),
        *QUIET,
        f"{FLOW}.vector_field.init_args.hidden=[2]",
        f"{FLOW}.solver.init_args.method=euler",
        f"{FLOW}.solver.init_args.n_steps=1",
        f"{FLOW}.eval_solver.init_args.rtol=1.0",
        f"{FLOW}.eval_solver.init_args.atol=1.0",
        f"{MODEL}.test_draws=2",
        f"{DATA}.data_dir={mnist}",
        f"{DATA}.val_size=10",
        f"{DATA}.batch_size=4",
        f"{DATA}.eval_batch_size=10",
    ]
    return lambda command, *more: cli.main([command, *config, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run):
    """A short run of RNODE with STEER, whose logging is that of the config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setattr("sys.argv", ["cli.py"])
        main = run("fit", STEER, "--trainer.max_steps=24", "--trainer.val_check_interval=2")
        folder = Path(main.trainer.log_dir).resolve()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return SimpleNamespace(main=main, events=events, path=folder / "checkpoints/last.ckpt")


def test_tensorboard_has_what_is_promised(trained):
    tags = trained.events.Tags()
    assert tags["images"] == ["samples_val"]
    names = (
        "bits_per_dim kinetic jacobian loss grad_norm nfe_forward nfe_backward seconds "
        "cpu_seconds device/samples_per_sec"
    )
    promised = {"val/bits_per_dim", "lr-Adam"} | {f"train/{name}" for name in names.split()}
    for block in BLOCKS:
        promised |= {f"train/nfe_forward/{block}", f"train/nfe_backward/{block}"}
        promised |= {f"val/nfe_forward/{block}", f"steer/{block}.horizon/end_time"}
    assert promised - set(tags["scalars"]) == set()

    last = {name: trained.events.Scalars(f"train/{name}")[-1].value for name in names.split()[:4]}
    energies = 0.01 * last["kinetic"] + 0.01 * last["jacobian"]
    assert last["loss"] == pytest.approx(last["bits_per_dim"] + energies, rel=1e-5)


def test_warm_up_counts_steps(trained):
    def rate(step):
        return pytest.approx(1e-3 * (0.001 + 0.999 * step / 100), rel=1e-5)

    logged = {event.step: event.value for event in trained.events.Scalars("lr-Adam")}
    assert logged == {9: rate(9), 19: rate(19)}  # before the tenth and the twentieth step
    (optimizer,) = trained.main.trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == rate(24)


def test_test_reports_both_conventions_by_the_settings_given(trained, run):
    main = run("test", STEER, f"--ckpt_path={trained.path}", f"{MODEL}.test_draws=3")
    assert len(main.model.draws) == 3  # not the checkpoint's two
    metrics = main.trainer.callback_metrics
    names = {name for name in metrics if "bits_per_dim" in name}
    assert names == {f"test/bits_per_dim{end}" for end in ("", "_center", "_stderr")}
    assert 0.0 < metrics["test/bits_per_dim_stderr"] < 0.01
    for name in ("test/bits_per_dim", "test/bits_per_dim_center"):
        assert metrics[name] == pytest.approx(8.0, abs=2.0)  # uniform noise has eight bits


def test_predict_writes_samples(trained, run, folder):
    main = run("predict", f"--ckpt_path={trained.path}")
    samples = folder / main.trainer.log_dir / "samples"
    assert sorted(p.name for p in samples.iterdir()) == ["0_0.png", "0_0.pt"]
    images = torch.load(samples / "0_0.pt", weights_only=True)
    assert images.shape == (10, 1, 14, 14)
    assert 0.0 <= images.min() < images.max() <= 1.0
    assert imread(samples / "0_0.png").ndim == 3


def test_averaged_weights_are_validated_and_saved(run, folder):
    main = run(
        "fit",
        STEER,
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.5",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--checkpoint.dirpath=checkpoints",
        "--checkpoint.filename={step}",
        "--checkpoint.monitor=null",
        "--checkpoint.save_top_k=-1",
        "--checkpoint.every_n_train_steps=1",
        f"{MODEL}.optimizer.init_args.lr=0.1",
        f"{MODEL}.lr_scheduler.init_args.start_factor=1.0",
    )
    validated = main.trainer.callback_metrics["val/bits_per_dim"].item()
    first, second = (torch.load(f"checkpoints/step={n}.ckpt", weights_only=True) for n in (1, 2))
    for name, averaged in second["state_dict"].items():
        expected = 0.5 * (first["state_dict"][name] + second["current_model_state"][name])
        torch.testing.assert_close(averaged, expected)
        assert torch.equal(first["state_dict"][name], first["current_model_state"][name])

    # Without STEER, so that only the nominal end times can agree.
    again = run("validate", "--ckpt_path=checkpoints/step=2.ckpt")
    assert again.trainer.callback_metrics["val/bits_per_dim"].item() == validated
    assert [block.horizon.end_time for block in main.model.flow.blocks] == [1.0] * 6
    again.model.load_state_dict(second["current_model_state"])
    (raw,) = again.trainer.validate(again.model, again.datamodule, verbose=False)
    assert raw["val/bits_per_dim"] != validated
