"""Starts processes that find each other as those of torchrun do, and ends those that hang."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def quiet_environment(**variables: object) -> dict[str, str]:
    """This process's environment without what launchers and seeds have left there."""
    launchers = ("SLURM", "TORCHELASTIC", "MASTER_", "WORLD_SIZE", "PL_GLOBAL_SEED")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers) and "RANK" not in k}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        **{name: str(value) for name, value in variables.items()},
    }


def run_ranks(arguments: list[str], logs: Path, n_ranks: int = 2, limit_s: float = 300) -> None:
    """Run ``python <arguments>`` once for each rank, on this machine.

    Raises:
        RuntimeError: If a rank fails, or all are not done within ``limit_s`` seconds; with what
            the ranks printed.
    """
    port = free_port()
    ranks = []
    for rank in range(n_ranks):
        environment = quiet_environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="tests", GROUP_RANK=0,
            RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n_ranks, LOCAL_WORLD_SIZE=n_ranks,
        )  # fmt: skip
        with (logs / f"{rank}.txt").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=logs,
                )
            )  # fmt: skip
    end = time.monotonic() + limit_s
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > end or any(rank.poll() for rank in ranks):
                break  # others would wait for one that failed
            time.sleep(0.1)
        codes = [rank.poll() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if any(codes) or None in codes:
        outputs = [(logs / f"{rank}.txt").read_text()[-5000:] for rank in range(n_ranks)]
        raise RuntimeError(
            f"Expected {n_ranks} ranks to end well within {limit_s:g} s, but got exit codes "
            f"{codes} (None: killed). What they printed last:\n" + "\n---\n".join(outputs)
        )


def run_launcher(arguments: list[str], folder: Path, limit_s: float = 240) -> str:
    """Run ``python <arguments>``, which starts processes itself; gives what they printed.

    Raises:
        RuntimeError: If it fails, or is not done within ``limit_s`` seconds.
    """
    launched = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=quiet_environment(), cwd=folder, start_new_session=True,
    )  # fmt: skip
    code: int | None = None
    try:
        output, _ = launched.communicate(timeout=limit_s)
        code = launched.returncode
    except subprocess.TimeoutExpired:
        os.killpg(launched.pid, signal.SIGKILL)  # the session that was started above
        output, _ = launched.communicate()
    if code != 0:
        raise RuntimeError(f"Expected exit code 0, but got {code} (None: killed):\n{output}")
    return output
