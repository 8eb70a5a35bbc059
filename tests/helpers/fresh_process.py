"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


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
