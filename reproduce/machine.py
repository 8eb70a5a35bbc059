"""What a run is made by: the commit of the code, versions and hardware."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[1]


def _git(*command: str) -> str | None:
    """What git says of this repository; ``None`` outside of one."""
    with suppress(OSError, subprocess.CalledProcessError):
        arguments = ["git", "-C", str(_ROOT), *command]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    return None


# Of the code that is loaded: while runs go on, others may be committed.
_COMMIT, _CHANGES = _git("rev-parse", "HEAD"), _git("status", "--porcelain")


def describe_machine() -> dict[str, Any]:
    """Versions, hardware and the commit of the code (``None`` outside a repository)."""
    versions = {}
    for name in ("torch", "pytorch-lightning", "torchdiffeq", "torchvision", "mujoco"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    cpu = platform.processor() or platform.machine()
    if (cpus := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"^model name\s*: *(.+)", cpus.read_text(), re.MULTILINE)
        cpu = found[1].strip() if found else cpu
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _COMMIT,
        "dirty": None if _CHANGES is None else bool(_CHANGES),
    }
