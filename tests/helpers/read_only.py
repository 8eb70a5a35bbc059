"""Folders that cannot be written to, not even by root."""

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CAPABILITY_VERSION_3 = 0x20080522


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Take the right to write into folders, and all that they hold, away for a while."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with _bound_by_modes():
            for folder in folders:
                with pytest.raises(PermissionError):
                    (folder / "probe").touch()
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextmanager
def _bound_by_modes() -> Iterator[None]:
    """Let the modes of files hold for this thread also if it is root's, as on Linux."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, twice 32 bits of each.
    saved, bare = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, saved) == 0
    bare[:] = saved[:]
    bare[0] = bare[3] = 0
    assert libc.capset(header, bare) == 0
    try:
        yield
    finally:
        assert libc.capset(header, saved) == 0
