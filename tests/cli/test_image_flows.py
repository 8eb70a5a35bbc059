"""Training, testing and sampling of an image flow from the command line."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
from tests.cli.running import CONFIGS, DATA, FLOW, MODEL, QUIET, refuse
from tests.helpers.mnist_files import write_mnist

STEER = "--steer.b=0.5"
BLOCKS = [
    *(f"flow.scales.0.{stack}.{i}" for stack in ("before", "after") for i in range(2)),
    *(f"flow.scales.1.before.{i}" for i in range(2)),
]


def arguments(command, name, mnist, *more):
    return [
        command,
        "--config",
        str(CONFIGS / "cnf" / f"{name}.yaml"),
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
        *more,
    ]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder, n_train=110)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mnist):
    """A short run of RNODE with STEER, whose logging is that of the config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setattr("sys.argv", ["cli.py"])
        short = ["--trainer.max_steps=24", "--trainer.val_check_interval=24"]
        main = cli.main(arguments("fit", "mnist_small_rnode", mnist, STEER, *short))
        run = Path(main.trainer.log_dir).resolve()
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return SimpleNamespace(main=main, events=events, checkpoint=run / "checkpoints/last.ckpt")


def test_tensorboard_has_what_is_promised(trained):
    tags = trained.events.Tags()
    assert tags["images"] == ["samples_val"]
    promised = {"val/bits_per_dim", "lr-Adam"}
    for name in (
        "bits_per_dim",
        "kinetic",
        "jacobian",
        "loss",
        "grad_norm",
        "nfe_forward",
        "nfe_backward",
        "seconds",
        "cpu_seconds",
        "device/samples_per_sec",
    ):
        promised.add(f"train/{name}")
    for block in BLOCKS:
        promised |= {f"train/nfe_forward/{block}", f"train/nfe_backward/{block}"}
        promised |= {f"val/nfe_forward/{block}", f"steer/{block}.horizon/end_time"}
    assert promised - set(tags["scalars"]) == set()


def test_loss_is_the_sum_of_its_terms(trained):
    def last(name):
        return trained.events.Scalars(f"train/{name}")[-1].value

    energies = 0.01 * last("kinetic") + 0.01 * last("jacobian")
    assert last("loss") == pytest.approx(last("bits_per_dim") + energies, rel=1e-5)


def test_warm_up_counts_steps(trained):
    def rate(step):
        return pytest.approx(1e-3 * (0.001 + 0.999 * step / 100), rel=1e-5)

    logged = {event.step: event.value for event in trained.events.Scalars("lr-Adam")}
    assert logged == {9: rate(9), 19: rate(19)}  # before the tenth and the twentieth step
    (optimizer,) = trained.main.trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == rate(24)


def test_test_reports_both_conventions(trained, mnist):
    path = f"--ckpt_path={trained.checkpoint}"
    main = cli.main(arguments("test", "mnist_small_rnode", mnist, STEER, path))
    metrics = main.trainer.callback_metrics
    names = {name for name in metrics if "bits_per_dim" in name}
    assert names == {f"test/bits_per_dim{end}" for end in ("", "_center", "_stderr")}
    assert 0.0 < metrics["test/bits_per_dim_stderr"] < 0.01
    for name in ("test/bits_per_dim", "test/bits_per_dim_center"):
        assert metrics[name] == pytest.approx(8.0, abs=2.0)  # uniform noise has eight bits


def test_predict_writes_samples(trained, mnist, folder):
    path = f"--ckpt_path={trained.checkpoint}"
    main = cli.main(arguments("predict", "mnist_small_rnode", mnist, path))
    samples = folder / main.trainer.log_dir / "samples"
    assert sorted(p.name for p in samples.iterdir()) == ["0_0.png", "0_0.pt"]
    images = torch.load(samples / "0_0.pt", weights_only=True)
    assert images.shape == (10, 1, 14, 14)
    assert 0.0 <= images.min() < images.max() <= 1.0
    assert imread(samples / "0_0.png").ndim == 3


def test_averaged_weights_are_validated_and_saved(mnist, folder):
    main = cli.main(
        arguments(
            "fit",
            "mnist_small_rnode",
            mnist,
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
    )
    validated = main.trainer.callback_metrics["val/bits_per_dim"].item()
    first, second = (torch.load(f"checkpoints/step={n}.ckpt", weights_only=True) for n in (1, 2))
    for name, averaged in second["state_dict"].items():
        expected = 0.5 * (first["state_dict"][name] + second["current_model_state"][name])
        torch.testing.assert_close(averaged, expected)
        assert torch.equal(first["state_dict"][name], first["current_model_state"][name])

    # Without STEER, so that only the nominal end times can agree.
    path = "--ckpt_path=checkpoints/step=2.ckpt"
    again = cli.main(arguments("validate", "mnist_small_rnode", mnist, path))
    assert again.trainer.callback_metrics["val/bits_per_dim"].item() == validated
    assert [block.horizon.end_time for block in main.model.flow.blocks] == [1.0] * 6
    again.model.load_state_dict(second["current_model_state"])
    (raw,) = again.trainer.validate(again.model, again.datamodule, verbose=False)
    assert raw["val/bits_per_dim"] != validated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"{FLOW}.event_shape=[1,28,28]", "of shape (B, 1, 28, 28), but got (10, 1, 14, 14)"),
        (f"{DATA}.image_size=28", "of shape (B, 1, 14, 14), but got (10, 1, 28, 28)"),
        (f"{DATA}.pixels=unit", "give them with `--data.pixels=grey`"),
        (f"{FLOW}.alpha=0.5", "Expected `alpha` in [0, 0.5), but got 0.5"),
        (f"{FLOW}.alpha=-1", "Expected `alpha` in [0, 0.5), but got -1.0"),
    ],
)
def test_bad_values_end_before_training(change, message, mnist, folder):
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.main(arguments("fit", "mnist_small_rnode", mnist, STEER, change))
    assert not list(folder.rglob("*.ckpt"))


def test_the_variant_of_imagenet_must_be_said(capsys):
    config = yaml.safe_load((CONFIGS / "cnf/imagenet32_rnode.yaml").read_text())
    del config["data"]["init_args"]["variant"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert "variant" in refuse(["fit", "--config", "config.yaml"], capsys)


@pytest.mark.parametrize("option", [f"{FLOW}.alhpa=0.1", f"{DATA}.pixles=grey"])
def test_misspelt_options(option, mnist, capsys):
    message = refuse(arguments("fit", "mnist_small_rnode", mnist, option), capsys)
    assert option.split(".")[-1].split("=")[0] in message


def test_settings_hold_beside_a_checkpoint(trained, mnist):
    path = f"--ckpt_path={trained.checkpoint}"
    draws = f"{MODEL}.test_draws=3"
    main = cli.main(arguments("test", "mnist_small_rnode", mnist, path, draws))
    assert len(main.model.draws) == 3


def test_a_checkpoint_of_another_width_is_refused(trained, mnist):
    path = f"--ckpt_path={trained.checkpoint}"
    width = f"{FLOW}.vector_field.init_args.hidden=[3]"
    with pytest.raises(ValueError, match=r"weights: flow\.scales.* The configs differ in flow"):
        cli.main(arguments("test", "mnist_small_rnode", mnist, path, width))
