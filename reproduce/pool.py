"""Runs on this machine, side by side."""

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from reproduce.runs import Run, execute

_PATIENCE_SECONDS = 30.0


def execute_all(
    runs: Sequence[Run], jobs: int, done: Callable[[Run], None], deadline: float | None = None
) -> None:
    """Execute every run, in processes of their own: one that crashes ends no other.

    Args:
        runs: What to execute, in this order.
        jobs: How many at a time; 0 executes one after the other in this process.
        done: Called with each run that has ended.
        deadline: Time of ``time.monotonic`` at which runs are stopped and none begins any more.
    """

    def left() -> float | None:
        return None if deadline is None else deadline - time.monotonic()

    def is_up() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    if jobs == 0:
        for run in runs:
            if not is_up():
                execute(run, left())
                done(run)
        return
    # Forked from a process that has imported everything and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "reproduce.pool"])
    # No more than OMP_NUM_THREADS says, which torch has read.
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // jobs))
    waiting = deque(runs)
    running: dict[int, tuple[BaseProcess, Run]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not is_up():
                run = waiting.popleft()
                process: BaseProcess = context.Process(target=_child, args=(run, threads, left()))
                process.start()
                running[process.sentinel] = (process, run)
            if not running:  # the time is up
                return
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, run = running.pop(sentinel)
                process.join()
                if process.exitcode and run.record().status == "pending":
                    run.fail(
                        f"the process ended with exit code {process.exitcode} and no result; "
                        f"see {run.folder / 'output.log'}"
                    )
                done(run)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(_PATIENCE_SECONDS)
            process.kill()


def _child(run: Run, threads: int, seconds: float | None) -> None:
    """Execute a run; all that it prints goes to a file beside its results."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "output.log").open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    try:
        execute(run, seconds)
    except SIGTERMException:  # which would end as if all had gone well
        sys.exit(128 + signal.SIGTERM)
