"""Where runs of the command line write, and what they say."""

from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

import cli
from steer_lightning.callbacks import SolverProgressBar
from steer_lightning.modules import CNFModule
from tests.cli.running import FLOW, QUIET, callbacks, toy_config, write

# What Lightning and PyTorch say in every run.
IDLE = "LeafSpec", "`weights_only` was not set", "Tip: For seamless cloud logging"


def run(command, *arguments, steer=0.5):
    config = write(toy_config(steer=steer and {"b": steer}), "given.yaml")
    return cli.main([command, "--config", config, *arguments, *QUIET]).trainer


def test_validate_test_and_predict_go_on_beside_their_training_run(folder, caplog, recwarn):
    config, plot = write(toy_config(steer={"b": 0.25})), "--trainer.callbacks+=FlowPlot"
    fit = cli.main(["fit", "--config", config, plot, *QUIET])
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "flow.horizon  [0, 1]  0.25  uniform       batch" in said
    assert not any(words in said for words in IDLE)
    place = folder / "logs/run_steer/version_0"
    names = {p.name for p in (place / "checkpoints").iterdir()}
    assert len(names - {"last.ckpt"}) == 1
    keys = {"train/nll", "val/nll", "train/nfe_forward", "val/nfe_forward"}
    assert keys | {"steer/flow.horizon/end_time"} <= set(fit.trainer.callback_metrics)

    # STEER's settings are kept, and the model is still built from its own.
    last = place / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["callbacks"]["HyperparameterLog"]["steer"]
    assert (saved["b"], saved["scope"]) == (0.25, "batch")
    assert isinstance(CNFModule.load_from_checkpoint(last, weights_only=True), CNFModule)
    assert yaml.safe_load((place / "config.yaml").read_text())["steer"]["init_args"]["b"] == 0.25

    def go_on(command, config, *more):
        given = ["--config", str(config), "--ckpt_path", str(last), plot, *more]
        return cli.main([command, *given, *QUIET])

    trained = {*place.rglob("*")}
    mains = [go_on(command, config) for command in ("validate", "predict", "test")]
    assert {folder / main.trainer.log_dir for main in mains} == {place}
    written = {*place.rglob("*")} - trained
    predicted = torch.load(place / "predictions" / "0_0.pt")
    assert set(predicted) == {"x", "z", "log_p"}
    plots = (f"flow_{name}.{ending}" for name in ("val", "test") for ending in ("png", "svg"))
    configs = (f"config_{command}.yaml" for command in ("validate", "test", "predict"))
    assert {p.name for p in written if "tfevents" not in p.name} == {
        "plots", *plots, *configs, "predictions", "0_0.pt"
    }  # fmt: skip
    assert [p.name for p in place.parent.iterdir()] == ["version_0"]

    tested = mains[-1]
    assert tested.model is not fit.model
    expected = fit.trainer.test(fit.model, fit.datamodule, verbose=False)[0]["test/nll"]
    again = go_on("test", place / "config.yaml")  # the run's own record is enough to run it again
    for main in (tested, again):
        assert main.trainer.callback_metrics["test/nll"].item() == expected
    with pytest.raises(
        ValueError,
        match=r"same network as CNFModule has now.* The configs differ in "
        r"flow\.vector_field\.hidden \(was \[8\], is \[9\]\)\. Run it with the config\.yaml",
    ):
        go_on("test", config, f"{FLOW}.vector_field.init_args.hidden=[9]")


def test_a_run_that_goes_on_with_other_settings_is_told_so(folder, recwarn):
    last = Path(run("fit").log_dir) / "checkpoints" / "last.ckpt"
    more = "--trainer.max_epochs=3", f"--ckpt_path={last}"
    for changed in ((), (f"{FLOW}.solver=AdaptiveSolver", f"{FLOW}.solver.rtol=0.1")):
        recwarn.clear()
        run("fit", *more, *changed)
        said = [str(w.message) for w in recwarn if "other settings of the model" in str(w.message)]
        assert len(said) == bool(changed)
        assert all("flow.solver" in words for words in said)


def test_other_runs_leave_the_metrics_of_a_csv_logger(folder):
    logged = "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"
    log_dir = Path(run("fit", *logged, "--trainer.log_every_n_steps=1").log_dir)
    trained = (log_dir / "metrics.csv").read_text()
    for _ in range(2):
        run("test", *logged, f"--ckpt_path={log_dir / 'checkpoints' / 'last.ckpt'}")
    assert (log_dir / "metrics.csv").read_text() == trained
    for name in ("test", "test_1"):
        assert "test/nll" in (log_dir / name / "metrics.csv").read_text()


def test_a_run_that_goes_on_keeps_the_metrics_of_a_csv_logger(folder):
    logged = "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"
    logged += "--trainer.logger.version=a", "--trainer.log_every_n_steps=1"
    log_dir = Path(run("fit", *logged).log_dir)
    metrics = (log_dir / "metrics.csv").read_text()
    last = f"--ckpt_path={log_dir / 'checkpoints' / 'last.ckpt'}"
    assert run("fit", *logged, last, "--trainer.max_epochs=3").log_dir == str(log_dir)
    assert (log_dir / "metrics_1.csv").read_text() == metrics
    assert (log_dir / "metrics.csv").read_text() != metrics


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("task", "logger"), [(None, []), ("3", ["--trainer.logger=false"])])
def test_what_a_job_of_slurm_leaves_is_found_by_itself_alone(monkeypatch, caplog, task, logger):
    job = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "8"}
    if task:
        job |= {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": task}
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    first = run("fit", *logger)
    assert first.default_root_dir == f"logs/slurm/{'7_3' if task else '8'}"
    first.save_checkpoint(Path(first.default_root_dir, "hpc_ckpt_1.ckpt"))
    first.save_checkpoint("asked.ckpt")  # of what was submitted, before it was queued again
    run("fit", *logger, "--ckpt_path=asked.ckpt")
    assert "hpc_ckpt_1.ckpt" in caplog.text
    for key, goes_on in (("none", True), ("ARRAY_TASK_ID" if task else "JOB_ID", False)):
        monkeypatch.setenv(f"SLURM_{key}", "4")
        caplog.clear()
        run("fit", *logger)
        assert ("hpc_ckpt_1.ckpt" in caplog.text) is goes_on


def test_what_is_only_built_is_not_warned_of(folder, recwarn):
    cli.main(["--config", write(toy_config())], run=False)
    assert not [warning for warning in recwarn if "--ckpt_path" in str(warning.message)]


def test_no_checkpoints_where_none_are_wanted(folder):
    run("fit", "--trainer.enable_checkpointing=false")
    assert not list(folder.rglob("*.ckpt"))


ASKED = "--steer=.5", "--penalties.kinetic_energy=0.1"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ((), ASKED, "{} begins here: the checkpoint was trained without {}"),
        (ASKED, (), "Please add the following callbacks"),  # Lightning's
    ],
    ids=["joins", "leaves"],
)
def test_a_callback_that_joins_or_leaves_a_training_is_named(before, now, words, recwarn):
    folder = Path(run("fit", *before, steer=None).log_dir)
    last = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    recwarn.clear()
    run("fit", *now, "--trainer.max_epochs=3", last, steer=None)
    said = " ".join(str(warning.message) for warning in recwarn)
    for name in ("SteerCallback", "PenaltyCallback"):
        assert words.format(name, name) in said
        assert name in said
    recwarn.clear()
    run("test", *now, last, steer=None)
    assert not [warning for warning in recwarn if "callback" in str(warning.message)]


def test_predictions_are_those_of_the_last_time(folder):
    checkpoint = f"--ckpt_path={Path(run('fit').log_dir) / 'checkpoints' / 'last.ckpt'}"
    for size, names in ((2, {"0_0.pt", "0_1.pt", "0_2.pt", "0_3.pt"}), (8, {"0_0.pt"})):
        run("predict", checkpoint, f"--data.eval_batch_size={size}")
        assert {p.name for p in folder.rglob("predictions/*")} == names


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_dev_run_leaves_no_file(folder, command):
    sweep = "--trainer.callbacks+=EndTimeSweep", "--trainer.callbacks.b=0.25"
    run(command, "--trainer.fast_dev_run=1", "--trainer.callbacks+=FlowPlot", *sweep)
    assert {p.name for p in folder.rglob("*") if p.is_file()} <= {"given.yaml", "config.yaml"}


def test_without_a_logger_all_lies_in_the_folder_of_the_run(folder):
    def settings(path):
        return yaml.safe_load(path.read_text())["steer"]["init_args"]["b"]

    off = "--trainer.logger=false", "--trainer.callbacks+=FlowPlot"
    for b in (0.25, 0.5):
        run("fit", *off, steer=b)
    run("test", *off, "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt", steer=0.25)
    run("fit", *off, "--trainer.default_root_dir=mine", "--trainer.max_epochs=1")
    first, second, mine = folder / "logs/run/version_0", folder / "logs/run/version_1", "mine"
    assert (settings(first / "config.yaml"), settings(second / "config.yaml")) == (0.25, 0.5)
    assert {p.name for p in first.iterdir()} == {
        "checkpoints", "config.yaml", "config_test.yaml", "plots",
    }  # fmt: skip
    files = {p.relative_to(folder).parts[:3] for p in folder.rglob("*") if p.is_file()}
    assert {parts[:1] for parts in files} == {("logs",), (mine,), ("given.yaml",)}
    assert {parts for parts in files if parts[0] == mine} == {
        (mine, "version_0", name) for name in ("checkpoints", "config.yaml")
    }


def test_no_run_overwrites_the_config_of_another(folder):
    same = "--trainer.logger.version=same", "--trainer.max_epochs=1"
    for b in (0.25, 0.5, 0.5):
        trainer = run("fit", *same, steer=b)
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
    assert [type(bar) for bar in callbacks(main, ProgressBar)] == expected
