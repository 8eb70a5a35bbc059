"""Runs that are stopped, killed or waited for, and go on as if they had not been."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from reproduce.catalogue.stiff import figure4
from reproduce.pool import execute_all
from reproduce.runs import CONFIGS, Run, Settings, execute
from steer_lightning.callbacks import TrainingClock
from tests.reproduce.running import ALARM, TINY, make, numbers

ROOT = CONFIGS.parent


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


def test_a_test_that_has_begun_is_finished(monkeypatch):
    left, kept = [], Trainer.test

    def test(*arguments, **named):
        left.append(signal.getitimer(signal.ITIMER_REAL))
        return kept(*arguments, **named)

    monkeypatch.setattr(Trainer, "test", test)
    execute(run := make(), 1000.0)
    assert left == [(0.0, 0.0)]
    assert run.record().status == "finished"


def test_a_run_that_was_moved_says_so(stopping, tmp_path):
    stopping(run := make(), 3)
    (tmp_path / "elsewhere").mkdir()
    shutil.move("results", tmp_path / "elsewhere" / "results")
    moved = make(output=tmp_path / "elsewhere" / "results")
    assert moved.folder != run.folder
    execute(moved)
    assert moved.record().status == "failed"
    assert "The dirpath has changed" in moved.record().message


def test_a_job_that_is_told_to_end_goes_on_until_it_is_queued_again(monkeypatch):
    slurm = pytest.importorskip("reproduce.slurm", reason="submitit is not installed")
    asked = []

    def ends_once(run, seconds):
        asked.append(seconds)
        if len(asked) == 1:
            raise SIGTERMException

    monkeypatch.setattr(slurm, "execute", ends_once)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(torch.get_num_threads()))
    slurm.Job(60.0)(make())
    assert 59.0 < asked[1] < asked[0] <= 60.0


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
from tests.reproduce.running import TINY, make
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


def test_what_left_nothing_to_go_on_from_is_no_session(stopping, monkeypatch):
    run = make()
    with monkeypatch.context() as patch:
        patch.setattr("reproduce.runs.describe_machine", lambda: {"commit": "before"})
        stopping(run, 0)
    execute(run)
    assert "before" not in run.record().machine["commit"]


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
