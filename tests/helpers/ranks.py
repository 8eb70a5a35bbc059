"""Several processes of one run, under a time limit."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(module: str, folder: Path, *, n: int = 2, seconds: float = 240) -> list[Any]:
    """Run ``python -m <module> <folder>`` on every rank, as torchrun would.

    Each rank has to write ``<folder>/rank<i>.pt``.

    Returns:
        What each rank wrote.

    Raises:
        AssertionError: If a rank fails, or is not done in time; with the output of all.
    """
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(n),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", module, str(folder)]
    processes, logs = [], []
    for rank in range(n):
        logs.append(folder / f"rank{rank}.log")
        with logs[-1].open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    except subprocess.TimeoutExpired:
        codes = ["hangs"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    output = "\n".join(f"--- {log.name}\n{log.read_text()[-8000:]}" for log in logs)
    assert codes == [0] * n, f"exit codes {codes}\n{output}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(n)]
