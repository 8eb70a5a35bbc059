from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from datamodules.files import cached_tensors, download
from steer_lightning.files import replacing
from tests.helpers.http_server import serving


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def make(value: float = 1.0):
    return {"x": torch.full((3,), value), "y": torch.tensor([True])}


def never():
    pytest.fail("The cache is there.")


def test_tensors_are_made_once(tmp_path):
    path = tmp_path / "cache" / "a.pt"
    first = cached_tensors(path, ["x", "y"], make)
    again = cached_tensors(path, ["x", "y"], never)
    assert all(torch.equal(first[name], again[name]) for name in ("x", "y"))
    assert names(path.parent) == ["a.pt"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"broken"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: torch.save({"x": torch.zeros(1)}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(Path("not a tensor"), path),
    ],
)
def test_a_broken_cache_is_made_again(tmp_path, damage, caplog):
    path = tmp_path / "a.pt"
    cached_tensors(path, ["x", "y"], make)
    damage(path)
    with caplog.at_level("INFO"):
        assert cached_tensors(path, ["x", "y"], lambda: make(2.0))["x"][0] == 2.0
    assert f"The cache {path} is broken and is made again." in caplog.messages
    assert cached_tensors(path, ["x", "y"], never)["x"][0] == 2.0


def test_a_cache_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("")
    message = "Expected to write the cache .*a.pt, but got: .* Set `--data.cache_dir` to a folder"
    with pytest.raises(OSError, match=message):
        cached_tensors(tmp_path / "file" / "a.pt", ["x"], make)


def test_two_processes_make_one_cache_at_once(tmp_path):
    context = get_context("fork")
    barrier, path = context.Barrier(2), tmp_path / "a.pt"

    def slowly():
        barrier.wait(timeout=20)
        return make()

    processes = [
        context.Process(target=cached_tensors, args=(path, ["x", "y"], slowly)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert names(tmp_path) == ["a.pt"]
    assert cached_tensors(path, ["x", "y"], never)["x"].tolist() == [1.0] * 3


def is_checked(path: Path) -> None:
    if path.read_bytes() == b"broken":
        raise ValueError("It is broken.")


def test_download(tmp_path, caplog):
    path = tmp_path / "new" / "a.txt"
    with serving({"a.txt": b"content"}) as address, caplog.at_level("INFO"):
        download(f"{address}a.txt", path, is_checked)
    assert path.read_bytes() == b"content"
    assert caplog.messages == [f"Downloading {address}a.txt"]


@pytest.mark.parametrize(
    ("name", "announce_more", "error", "message"),
    [
        (
            "missing",
            0,
            OSError,
            "Expected to download .*missing, but got: HTTP Error 404.* put it",
        ),
        ("a.txt", 5, OSError, r"Expected (12 bytes .* but got 7\.|to download .*IncompleteRead)"),
        ("broken", 0, ValueError, "It is broken."),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, name, announce_more, error, message):
    contents = {"a.txt": b"content", "broken": b"broken"}
    with serving(contents, announce_more) as address, pytest.raises(error, match=message):
        download(f"{address}{name}", tmp_path / "a.txt", is_checked)
    assert names(tmp_path) == []


def test_no_connection_raises(tmp_path):
    with serving({}) as address:
        pass
    with pytest.raises(OSError, match=r"Expected to download .*refused.* or get the file by hand"):
        download(f"{address}a.txt", tmp_path / "a.txt", is_checked)
