"""Several processes prepare the same data, or one is killed on the way: files stay whole."""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Barrier, RLock

import pytest
from tqdm.auto import tqdm

from tests.helpers.data_sets import DATA_SETS, DOWNLOADED, all_batches, same
from tests.helpers.http_server import serving

# Files that get their name in `prepare_data`.
RENAMES = {"mnist": 4, "cifar10": 7, "svhn": 2, "physionet": 2, "activity": 1}


def started(function: Callable[[], object]) -> BaseProcess:
    def alone() -> None:
        # Progress bars share a lock with forked processes: one that is killed would keep it.
        tqdm.set_lock(RLock())
        function()

    process = get_context("fork").Process(target=alone, daemon=True)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(timeout=60)
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Files below a folder that have their names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    relative = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: content for name, content in relative.items() if not temporary(name)}


def temporary(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


@pytest.fixture
def source(tmp_path) -> Path:
    return tmp_path / "source"


@pytest.mark.parametrize("name", DOWNLOADED)
def test_two_processes_download_at_once(tmp_path, monkeypatch, source, name):
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    data_set.write(monkeypatch, source)
    data = data_set.build(folder, download=True)
    # No file is sent to its end before both processes have asked for it.
    with serving(data_set.pack(source), hold=Barrier(2)) as address:
        data_set.move(monkeypatch, address)
        processes = [started(data.prepare_data) for _ in range(2)]
        assert [ended(process) for process in processes] == [0, 0]
    assert contents(folder) == contents(source)
    assert not [path for path in folder.rglob("*") if temporary(path.name)]
    expected = all_batches(data_set.build(source))
    assert same(all_batches(data_set.build(folder)), expected)


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name, last in RENAMES.items() for n in sorted({0, last - 1})]
)
def test_a_process_killed_before_a_rename_loses_nothing(tmp_path, monkeypatch, source, name, n):
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    data_set.write(monkeypatch, source)
    data = data_set.build(folder, download=True)
    replace, calls = os.replace, []

    def killing(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) > n:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    with serving(data_set.pack(source)) as address:
        data_set.move(monkeypatch, address)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing)
            assert ended(started(data.prepare_data)) == -signal.SIGKILL
        left = contents(folder)
        assert len(left) == n
        assert left.items() <= contents(source).items()
        data.prepare_data()
    assert contents(folder) == contents(source)
    data.setup()
