"""Runs on a cluster: one job of a Slurm array each, through submitit."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from submitit.core.utils import JobPaths, pickle_load
from submitit.helpers import DelayedSubmission

from reproduce.runs import Run, execute
from steer_lightning.utils.io import replacing

NAME = "reproduce"  # of the jobs
_JOB = "job.json"
# Resources of a job, unless others are given; one thread, as with as many local jobs as cores.
RESOURCES = {"cpus_per_task": 1, "time": 24 * 60}
# A job that stops by itself at its budget has this much longer to write its checkpoint and test.
_GRACE_MINUTES = 10


@dataclass(frozen=True)
class Job:
    """What a job does; one that is preempted, or at its limit of time, is queued again."""

    seconds: float | None = None  # after which it stops by itself

    def __call__(self, run: Run) -> None:
        """Execute a run on the processors that the job was given."""
        torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))
        begun = time.monotonic()
        while True:
            gone = time.monotonic() - begun
            try:
                return execute(run, None if self.seconds is None else self.seconds - gone)
            except SIGTERMException:
                pass  # of a preemption, as a rule: a job that ends is not queued again

    def checkpoint(self, run: Run) -> DelayedSubmission:
        """The same again: the run goes on from its last check."""
        return DelayedSubmission(self, run)


def execute_on_slurm(
    runs: Sequence[Run],
    jobs: int | None,
    done: Callable[[Run], None],
    folder: Path,
    resources: Mapping[str, Any],
    minutes: float | None = None,
    every_seconds: float = 10.0,
) -> None:
    """Submit every run that has no job yet, and wait for all of them.

    Whoever waits may stop and come back: jobs go on, and are found again by the file
    ``job.json`` in the folders of their runs.

    Args:
        runs: What to execute; folder and code have to be seen by all nodes at the same place.
        jobs: How many at a time; ``None`` as many as Slurm lets.
        done: Called with each run that has ended.
        folder: For submitit's files and what jobs print.
        resources: Parameters of submitit's ``SlurmExecutor``, such as ``partition``, ``time``,
            ``mem``, ``cpus_per_task``, ``gpus_per_node``, over :data:`RESOURCES`.
        minutes: Each job stops by itself after so many, and its run is left pending.
        every_seconds: How often the queue is looked at.

    Raises:
        ValueError: If a parameter is unknown.
        RuntimeError: If there is no Slurm here.
    """
    # As often as it takes: a run goes on each time.
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=1000)
    limits = {} if minutes is None else {"time": int(minutes) + _GRACE_MINUTES}
    own = {"job_name": NAME, "array_parallelism": jobs or max(1, len(runs)), **RESOURCES}
    executor.update_parameters(**{**own, **limits, **resources})
    live = live_jobs()
    watched = {job_id: run for run in runs if (job_id := _job_of(run)) in live}
    new = [run for run in runs if run not in watched.values()]
    for run in new:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "failure.json").unlink(missing_ok=True)
    job = Job(None if minutes is None else 60.0 * minutes)
    for run, submitted in zip(new, executor.map_array(job, new) if new else [], strict=True):
        with replacing(run.folder / _JOB) as temporary:
            temporary.write_text(json.dumps(submitted.job_id))
        watched[submitted.job_id] = run
    while watched:
        time.sleep(every_seconds)
        try:
            live = live_jobs()
        except subprocess.CalledProcessError:
            continue  # a controller that is busy is asked again
        for job_id in [job_id for job_id in watched if job_id not in live]:
            run = watched.pop(job_id)
            why = _failure(JobPaths(folder.resolve(), job_id))
            if why and run.record().status == "pending":
                run.fail(f"job {job_id} {why}")
            done(run)


def live_jobs() -> set[str]:
    """Jobs of this user that wait or run, as ``<array>_<place>``."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def _failure(paths: JobPaths) -> str:
    """Why a job that has ended did not come to its run's end; empty if it stopped by itself."""
    if not paths.result_pickle.exists():
        return f"ended with no result; see {paths.stderr}"
    outcome, said = pickle_load(paths.result_pickle)
    return f"failed: {said.strip().splitlines()[-1]}" if outcome == "error" else ""


def _job_of(run: Run) -> str | None:
    """The job that was last submitted for a run."""
    path = run.folder / _JOB
    return json.loads(path.read_text()) if path.is_file() else None
