"""Runs as jobs of a real Slurm on this machine."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from reproduce.runs import CONFIGS, execute
from tests.reproduce.test_runs import ALARM, TINY, make, numbers

slurm = pytest.importorskip("reproduce.slurm", reason="submitit is not installed")
ROOT = CONFIGS.parent
STARTER = Path(os.environ.get("STEER_SLURM_DIR", ROOT.parent / "shared" / "slurm"), "one-node.sh")
MISSING = [
    *([] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["root"]),
    *(name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None),
    *([] if STARTER.is_file() else [f"{STARTER} (or another folder as STEER_SLURM_DIR)"]),
]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm can be started without {MISSING}"),
]


class Unreadable(str):
    """A text that cannot be unpickled, so that a job fails before its run begins."""

    def __reduce__(self):
        return int, ("text",)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run(["bash", STARTER, "start", folder], check=True, timeout=60)
    yield folder / "slurm.conf"
    subprocess.run(["bash", STARTER, "stop", folder], check=True, timeout=60)


@pytest.fixture
def launch(configuration, monkeypatch, tmp_path):
    """A function that executes runs as jobs and says in which order they ended."""
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.chdir(ROOT)  # as with `python -m reproduce`: jobs import from here

    def launch(runs, minutes=None, **resources):
        ended = []
        slurm.execute_on_slurm(
            runs, None, ended.append, tmp_path / "slurm", {"time": 5, **resources}, minutes, 1.0
        )
        return ended

    return launch


def test_jobs_give_the_numbers_of_runs_here(launch, tmp_path):
    crash = make(
        overrides=("--trainer.callbacks+=tests.reproduce.records.Crash",), output=tmp_path
    )
    stopped = make(overrides=(ALARM,), output=tmp_path)
    runs = [make(output=tmp_path), make(TINY.others[0], seed=1, output=tmp_path)]
    crash.fail("of old")
    unreadable = make(replace(TINY.baseline, label=Unreadable("")), seed=2, output=tmp_path)
    ended = launch([crash, stopped, unreadable, *runs], minutes=4)
    assert {run.folder for run in ended} == {
        run.folder for run in (crash, stopped, unreadable, *runs)
    }
    assert "failed: ValueError: invalid literal for int()" in unreadable.record().message
    assert crash.record().status == "failed"
    assert "ended with no result; see" in crash.record().message
    assert stopped.record().status == "pending"  # its time was up
    for run, variant in zip(runs, (TINY.baseline, TINY.others[0]), strict=True):
        here = make(variant, seed=run.seed, output=tmp_path / "here")
        execute(here)
        assert numbers(run) == numbers(here)
        assert run.record().machine["threads"] == 1
    (again,) = launch([stopped], minutes=4)  # from where it was stopped
    execute(whole := make(output=tmp_path / "whole"))
    assert numbers(again) == numbers(whole)


def test_jobs_that_wait_are_found_again(launch, tmp_path, monkeypatch):
    run = make(output=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(slurm.time, "sleep", lambda seconds: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # whoever waits goes away
            launch([run], additional_parameters={"hold": True})
    (waiting,) = slurm.live_jobs()
    subprocess.run(["scontrol", "release", waiting], check=True, timeout=60)
    assert launch([run]) == [run]
    assert run.record().status == "finished"
    assert waiting not in slurm.live_jobs()
    assert len(list((tmp_path / "slurm").glob("*_result.pkl"))) == 1  # it was submitted once


def test_an_unknown_resource_is_refused(launch, tmp_path):
    with pytest.raises(ValueError, match="wheels"):
        launch([make(output=tmp_path)], wheels=4)
