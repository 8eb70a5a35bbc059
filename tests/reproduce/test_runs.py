"""One run: resumed, failed, without its data."""

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import yaml

from reproduce.catalogue.flows import figure3
from reproduce.catalogue.stiff import figure4
from reproduce.experiments import Variant
from reproduce.pool import execute_all
from reproduce.runs import CONFIGS, Run, Settings, execute, prepare, time_training
from steer_lightning.callbacks import TrainingClock

ROOT = CONFIGS.parent
TINY = figure3("smoke").comparisons[0]
# Six steps, a check after each.
EPOCHS = ("--trainer.max_epochs=3",)


def make(variant=TINY.baseline, seed=0, overrides=(), output="results"):
    variant = replace(variant, overrides=(*variant.overrides, *EPOCHS))
    return Run(variant, seed, Settings("smoke", Path(output), Path("data"), overrides))


def numbers(run):
    """What has to be equal: all but the clocks."""
    record = run.record()
    assert record.status == "finished", record.message
    checks = [check._replace(seconds=0.0, cpu_seconds=0.0) for check in record.checks]
    return record.values, checks


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["reproduce"])
        run = make(TINY.others[0], output=tmp_path_factory.mktemp("unbroken"))
        execute(run)
    return run


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


class Stop(Exception):
    """What stops a run."""


@pytest.fixture
def stopping(monkeypatch):
    """A function that executes a run up to a step."""

    def stop(run, step):
        kept = TrainingClock.on_train_batch_start

        def start(self, trainer, *rest):
            if trainer.global_step == step:
                raise Stop("here")
            kept(self, trainer, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingClock, "on_train_batch_start", start)
            execute(run)
        assert run.record().message == "Stop: here"

    return stop


def test_a_run_that_is_stopped_ends_where_an_unbroken_one_does(unbroken, stopping, monkeypatch):
    run = make(TINY.others[0])
    with monkeypatch.context() as patch:
        before = {"commit": "before", "dirty": True}
        patch.setattr("reproduce.runs.describe_machine", lambda: before)
        stopping(run, 5)
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()
    execute(run)
    assert numbers(run) == numbers(unbroken)
    saved = json.loads((run.folder / "run.json").read_text())
    assert len(saved["sessions"]) == 2
    assert run.record().machine["commit"].startswith("before ")
    assert run.record().machine["dirty"]
    assert saved["arguments"][-1].endswith("last.ckpt")  # and did not begin anew


def test_checks_that_cross_epochs_go_on(tmp_path, stopping):
    """As in the configs of the stiff equation, with a check after every third of two batches."""
    variant = figure4("smoke").comparisons[0].others[0]
    overrides = ("--trainer.val_check_interval=3", "--trainer.max_epochs=5")
    runs = [
        Run(variant, 0, Settings("smoke", tmp_path / n, Path("data"), overrides)) for n in "ab"
    ]
    execute(runs[0])
    stopping(runs[1], 5)
    execute(runs[1])
    assert [check.step for check in runs[1].record().checks] == [3, 6, 9]
    assert numbers(runs[1]) == numbers(runs[0])


def test_an_interruption_is_no_failure(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    run = make()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingClock, "on_train_batch_start", interrupt)
        with pytest.raises(SystemExit):  # what Lightning makes of it
            execute(run)
    assert run.record().status == "pending"


ALARM = "--trainer.callbacks+=tests.reproduce.records.Alarm"


def test_a_run_whose_time_is_up_goes_on_as_if_it_had_not_been(unbroken):
    handler = signal.getsignal(signal.SIGALRM)
    run = make(TINY.others[0], overrides=(ALARM,))
    execute(run, 1000.0)
    assert run.record().status == "pending"
    assert not (run.folder / "failure.json").exists()
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    execute(run, 1000.0)
    assert numbers(run) == numbers(unbroken)


def test_the_time_may_be_up_before_training_where_sigint_is_ignored():
    early = "--trainer.callbacks+=tests.reproduce.records.EarlyAlarm"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    try:
        execute(run := make(overrides=(early,)), 1000.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.record().status == "pending"


def test_the_clock_of_a_run_is_real():
    run = make(TINY.others[0], overrides=("--trainer.max_epochs=1000000",))
    execute(run, 1.5)
    assert run.record().status == "pending"


def test_nothing_begins_when_the_time_is_up():
    seen = []
    for jobs in (0, 1):
        execute_all([make()], jobs, seen.append, time.monotonic())
    assert seen == []
    assert not make().folder.exists()


CODE = """
import os, signal, sys
from tests.reproduce.test_runs import TINY, make
from reproduce.runs import execute
from steer_lightning.callbacks import TrainingClock

kept = TrainingClock.on_train_batch_start
def stop(self, trainer, *rest):
    if trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    kept(self, trainer, *rest)

TrainingClock.on_train_batch_start = stop
execute(make(TINY.others[0], output=sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_that_is_killed(unbroken, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path],
        cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = make(TINY.others[0], output=tmp_path)
    assert run.record().status == "pending"
    execute(run)
    assert numbers(run) == numbers(unbroken)


def test_a_run_that_another_command_executes_is_waited_for(unbroken, monkeypatch):
    run, executed = make(), []
    monkeypatch.setattr("reproduce.runs._execute", executed.append)
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = Thread(target=execute, args=(run,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (run.folder / "run.json").write_text((unbroken.folder / "run.json").read_text())
    waiting.join()
    assert run.record().status == "finished"
    assert executed == []


def test_a_wait_for_another_command_ends_with_the_time():
    run = make()
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = time.monotonic()
        execute(run, 0.3)
    assert 0.2 < time.monotonic() - before < 10.0
    assert run.record().status == "pending"


def test_a_run_on_two_machines_names_both(unbroken):
    run, saved = make(), json.loads((unbroken.folder / "run.json").read_text())
    (session,) = saved["sessions"]
    saved["sessions"] = [session, {**session, "cpu": "Another CPU", "threads": 64}]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps(saved))
    assert run.record().processor == (
        f"{session['cpu']} then Another CPU {session['threads']} then 64"
    )


def test_what_left_nothing_to_go_on_from_is_no_session(stopping, monkeypatch):
    run = make()
    with monkeypatch.context() as patch:
        patch.setattr("reproduce.runs.describe_machine", lambda: {"commit": "before"})
        stopping(run, 0)
    execute(run)
    assert "before" not in run.record().machine["commit"]


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


def test_a_run_stopped_between_training_and_test_is_tested(unbroken, monkeypatch):
    run = make(TINY.others[0])
    with monkeypatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.test", lambda *a, **k: 1 / 0)
        execute(run)
    assert run.record().status == "failed"
    assert run.record().message == "ZeroDivisionError: division by zero"
    execute(run)
    assert not (run.folder / "failure.json").exists()
    assert numbers(run) == numbers(unbroken)


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
