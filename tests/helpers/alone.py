"""The package alone, as the wheel holds it: no datamodules, and no repository around it."""

import os
import subprocess
import sys
from pathlib import Path

import steer_lightning


def run_alone(folder: Path, *arguments: str, torch: bool = True) -> str:
    """Run ``python -m <arguments>`` in an empty folder, which must succeed; gives its output."""
    site = folder / "site"
    site.mkdir()
    (site / "steer_lightning").symlink_to(Path(steer_lightning.__file__).parent)
    if not torch:
        (site / "torch.py").write_text("raise ImportError('broken')")
    return run("-m", *arguments, cwd=folder, PYTHONPATH=str(site))


def run(*arguments: object, cwd: Path, **environment: str) -> str:
    """Run Python, which must succeed; gives its output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
