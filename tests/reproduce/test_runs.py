"""One run: what it leaves, what it keeps, why it fails."""

import json
import os
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from reproduce.experiments import Variant
from reproduce.pool import execute_all
from reproduce.runs import CONFIGS, Run, Settings, execute, prepare, time_training
from tests.reproduce.running import ALARM, TINY, make, numbers

ROOT = CONFIGS.parent


def test_what_a_finished_run_leaves(unbroken):
    saved = json.loads((unbroken.folder / "run.json").read_text())
    assert set(saved["values"]) >= {"test/nll", "test/nfe_forward", "val/nll"}
    assert set(saved["sweep"]) == {"end_time", "nll", "nfe_forward"}
    assert [check["step"] for check in saved["checks"]] == [1, 2, 3, 4, 5, 6]
    assert (saved["monitor"], saved["mode"], saved["scale"]) == ("val/nll", "min", "smoke")
    (session,) = saved["sessions"]
    assert {"versions", "cpu", "cores", "threads", "gpu", "commit", "dirty"} <= set(session)
    config = yaml.safe_load((unbroken.folder / "logs" / "config.yaml").read_text())
    classes = [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]]
    assert classes[-1] == "TrainingClock"
    assert config["steer"]["init_args"]["b"] == 0.25
    plots = {path.name for path in (unbroken.folder / "logs" / "plots").glob("*.png")}
    assert plots == {"flow_test.png", "end_time_sweep_test.png"}  # none of validation
    assert unbroken.record().clock == "cpu_seconds"


def test_a_run_on_two_machines_names_both(unbroken):
    run, saved = make(), json.loads((unbroken.folder / "run.json").read_text())
    (session,) = saved["sessions"]
    saved["sessions"] = [session, {**session, "cpu": "Another CPU", "threads": 64}]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps(saved))
    assert run.record().timed_on == (
        f"{session['cpu']} then Another CPU",
        f"{session['threads']} then 64",
        session["commit"],
    )


def test_a_run_keeps_the_config_that_it_found(monkeypatch, tmp_path):
    name = TINY.baseline.config
    text = (CONFIGS / f"{name}.yaml").read_text()
    (tmp_path / name).parent.mkdir()
    (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr("reproduce.runs.CONFIGS", tmp_path)
    run = make()
    folder = run.folder
    (tmp_path / f"{name}.yaml").write_text(text.replace("max_epochs: ", "max_epochs: 1"))
    elsewhere = pickle.loads(pickle.dumps(run))
    assert make().folder != folder == elsewhere.folder
    folder.mkdir(parents=True)
    assert f"--config {folder / 'config.yaml'}" in " ".join(elsewhere.fit_arguments())
    assert (folder / "config.yaml").read_text() == text


def test_data_are_prepared_where_there_is_no_gpu():
    prepare(make(overrides=("--trainer.accelerator=gpu", "--trainer.devices=4")))


def test_seeds_differ(unbroken):
    execute(other := make(TINY.others[0], seed=1))
    assert numbers(other)[0]["test/nll"] != numbers(unbroken)[0]["test/nll"]


@pytest.mark.parametrize(
    ("overrides", "n_steps"),
    [
        ((), 6),
        (("--trainer.max_epochs=7", "--trainer.limit_train_batches=1.0"), 14),  # 8 points, 4 each
        (("--trainer.max_epochs=7", "--trainer.max_steps=5"), 5),
    ],
)
def test_a_step_is_timed_and_the_steps_are_counted(overrides, n_steps):
    run = make(overrides=overrides)
    seconds, total = time_training(run, 2)
    assert total == n_steps
    assert 0.0 < seconds < 60.0
    assert not Path("plots").exists()
    assert run.record().status == "pending"


def test_a_step_of_a_finished_run_is_timed(unbroken):
    assert time_training(unbroken, 2)[1] == 6


def test_the_folder_says_what_is_trained():
    base = make()
    assert base.folder == Path("results/runs/smoke").resolve() / base.folder.parent.name / "seed0"
    assert base.folder.parent.name.startswith("cnf-toy1d-")
    relabelled = make(replace(TINY.baseline, label="other", paper="7"))
    assert relabelled.folder == base.folder
    for other in (
        make(TINY.others[0]),
        make(overrides=("--data.n_val=4",)),
        make(replace(TINY.baseline, weights="last")),
    ):
        assert other.folder.parent != base.folder.parent


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.n_trian=3", "cli.py refuses the arguments"),
        ("--data.name=8gausians", "8gaussians"),
        ("--trainer.max_epochs=-7", "max_epochs"),
    ],
)
def test_a_run_that_fails_says_why(override, message):
    run = make(overrides=(override,))
    execute(run)
    record = run.record()
    assert record.status == "failed"
    assert message in record.message
    assert record.folder == run.folder
    assert not (run.folder / "run.json").exists()


def test_weights_of_no_check_are_not_tested():
    execute(run := make(overrides=("--trainer.limit_val_batches=0",)))
    assert "Expected a checkpoint with the best val/nll, but got none" in run.record().message


def test_a_gpu_that_was_not_used_is_not_recorded(monkeypatch):
    monkeypatch.setattr("reproduce.runs.describe_machine", lambda: {"gpu": "A GPU"})
    execute(run := make())
    record = run.record()
    assert record.status == "finished", record.message
    assert (record.machine["gpu"], record.clock) == (None, "cpu_seconds")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("classifier/mnist_node_small", "Expected the MNIST file data/mnist/MNIST/raw"),
        ("latent_ode/mujoco_interp", "Expected dm_control to simulate the hopper"),
    ],
)
def test_absent_data_is_no_failure(config, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    run = Run(Variant("x", config), 0, Settings("smoke", Path("results"), Path("data")))
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=words):
        prepare(run)
    execute(run)
    assert run.record().status == "not run"
    assert words in run.record().message


@pytest.mark.slow
def test_one_crashing_process_ends_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # as with `python -m reproduce`: the processes import from here
    crash = "--trainer.callbacks+=tests.reproduce.records.Crash"
    runs = [
        make(overrides=(crash,), output=tmp_path),
        make(TINY.others[0], output=tmp_path),
        make(output=tmp_path),
        make(overrides=(ALARM,), output=tmp_path),
        make(overrides=(ALARM.replace("Alarm", "Terminate"),), output=tmp_path),
    ]
    seen = {}
    later = time.monotonic() + 1000.0
    execute_all(runs, 2, lambda run: seen.update({run.folder: run.record()}), later)
    crashed, *others, stopped, ended = (seen[run.folder] for run in runs)
    assert stopped.status == "pending"
    assert ended.message.startswith("the process ended with exit code 143")
    assert crashed.status == "failed"
    assert "ended with exit code 3 and no result" in crashed.message
    assert [record.status for record in others] == ["finished"] * 2
    assert [record.machine["threads"] for record in others] == [max(1, os.cpu_count() // 2)] * 2
    assert "Trainer.fit` stopped" in (runs[1].folder / "output.log").read_text()
