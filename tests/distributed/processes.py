"""Starts what starts processes itself, and ends those that hang."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(arguments: list[str], folder: Path, limit_s: float = 300) -> str:
    """Run ``python <arguments>`` in a folder; gives what all its processes printed.

    Raises:
        RuntimeError: If it fails, or is not done within ``limit_s`` seconds.
    """
    # Without what launchers and seeds have left there.
    launchers = ("SLURM", "TORCHELASTIC", "MASTER_", "WORLD_SIZE", "PL_GLOBAL_SEED")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers) and "RANK" not in k}
    added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    launched = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**kept, **added}, cwd=folder, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = launched.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(launched.pid, signal.SIGKILL)  # the session that was started above
        output, _ = launched.communicate()
    if launched.returncode != 0:
        raise RuntimeError(f"Expected exit code 0, but got {launched.returncode}:\n{output}")
    return output
