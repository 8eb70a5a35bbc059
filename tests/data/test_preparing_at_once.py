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
RENAMES = {"mnist": 4, "cifar10": 7, "svhn": 2, "physionet2012": 2, "person_activity": 1}


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


def contents(folder: Path) -> dict[Path, bytes]:
    """Files below a folder, but for temporary ones: a name on their way starts with a dot."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/." not in f"/{name}"}


@pytest.fixture
def served(request, tmp_path, monkeypatch):
    """A data set, its complete files on the server, and an empty folder to download them to."""
    DATA_SETS[request.param].write(monkeypatch, tmp_path / "source")
    return DATA_SETS[request.param], tmp_path / "source", tmp_path / "data"


@pytest.mark.parametrize("served", DOWNLOADED, indirect=True)
def test_two_processes_download_at_once_and_setup_never_does(served, monkeypatch):
    data_set, source, folder = served
    data = data_set.build(folder, download=True)
    # No file is sent to its end before both processes have asked for it.
    with serving(data_set.pack(source), hold=Barrier(2)) as address:
        data_set.move(monkeypatch, address)
        for step in (data.setup, data_set.build(folder).prepare_data):
            with pytest.raises(FileNotFoundError, match="but it does not exist"):
                step()
        processes = [started(data.prepare_data) for _ in range(2)]
        assert [ended(process) for process in processes] == [0, 0]
    assert contents(folder) == contents(source)
    assert not [*folder.rglob(".*")]
    expected = all_batches(data_set.build(source))
    assert same(all_batches(data_set.build(folder)), expected)


@pytest.mark.parametrize(
    ("served", "n"),
    [(name, n) for name, last in RENAMES.items() for n in sorted({0, last - 1})],
    indirect=["served"],
)
def test_a_process_killed_before_a_rename_loses_nothing(served, monkeypatch, n):
    data_set, source, folder = served
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
