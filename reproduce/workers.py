"""Runs in processes of their own, some at a time: one that crashes ends no other."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch

from reproduce.runs import Run, execute

_PATIENCE_SECONDS = 30.0


def execute_all(runs: Sequence[Run], jobs: int, done: Callable[[Run], None]) -> None:
    """Execute every run; whatever becomes of it, its files say."""
    if jobs == 0:
        for run in runs:
            execute(run)
            done(run)
        return
    # Forked from a process that has imported everything and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "reproduce.runs"])
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting = deque(runs)
    running: dict[int, tuple[BaseProcess, Run]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                process: BaseProcess = context.Process(target=_child, args=(run, threads))
                process.start()
                running[process.sentinel] = (process, run)
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, run = running.pop(sentinel)
                process.join()
                if run.record().status == "pending":
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


def _child(run: Run, threads: int) -> None:
    """Execute a run; all that it prints goes to a file beside its results."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "output.log").open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    execute(run)
