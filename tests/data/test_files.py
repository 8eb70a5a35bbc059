import zipfile
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from datamodules import files
from datamodules.files import cached_tensors, download, download_members
from steer_lightning.utils.io import load_plain, replacing
from tests.helpers.http_server import serving
from tests.helpers.threats import Threat


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


def test_no_code_in_a_cache_is_run(tmp_path):
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    torch.save({"x": Threat(marker), "y": torch.ones(1)}, path)
    assert cached_tensors(path, ["x", "y"], make)["x"].tolist() == [1.0] * 3
    assert names(tmp_path) == ["a.pt"]


def test_a_flipped_bit_in_a_file_of_tensors_raises(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    assert torch.equal(load_plain(path)["x"], torch.zeros(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["x"].any()  # Torch does not compare checksums.
    with pytest.raises(zipfile.BadZipFile, match="the checksum of a/data/0 is wrong"):
        load_plain(path)


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
            "Expected to download .*missing, but got: HTTP Error 404.* by hand and put it at",
        ),
        ("a.txt", 5, OSError, r"to download .*a.txt, but got: (7 bytes of the 12|IncompleteRead)"),
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
    with pytest.raises(OSError, match=r"Expected to download .*refused.*\. Check the connection,"):
        download(f"{address}a.txt", tmp_path / "a.txt", is_checked)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.txt",
        "http://127.0.0.1.example.org/a.txt",
        "http://127.0.0.1@example.org/a.txt",
        "ftp://example.org/a.txt",
        "file:///etc/hostname",
        "example.org/a.txt",
    ],
)
def test_addresses_without_https_are_refused(tmp_path, url):
    message = f"Expected an https address to download from, but got {url}: .* Get it by hand"
    with pytest.raises(ValueError, match=message):
        download(url, tmp_path / "new" / "a.txt", is_checked)
    with pytest.raises(ValueError, match=message):
        download_members(url, tmp_path / "new", lambda archive: {})
    assert names(tmp_path) == []


def test_https_is_asked_for(tmp_path, monkeypatch):
    class Opener:
        def open(self, url: str, timeout: float):
            raise OSError(f"asked for {url}")

    monkeypatch.setattr(files, "_OPENER", Opener())
    with pytest.raises(OSError, match=r"but got: asked for https://example\.org/a\.txt\. Check"):
        download("https://example.org/a.txt", tmp_path / "a.txt", is_checked)


def test_a_server_may_send_elsewhere_but_not_away_from_https(tmp_path):
    contents = {"a": "/b", "b": b"content", "c": "http://example.org/b"}
    with serving(contents) as address:
        download(f"{address}a", tmp_path / "a", is_checked)
        with pytest.raises(ValueError, match=r"https address .* but got http://example\.org/b"):
            download(f"{address}c", tmp_path / "c", is_checked)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"content"


def test_members_are_kept_and_the_archive_is_not(tmp_path, caplog):
    def take(archive: Path) -> dict[str, bytes]:
        assert archive.name == "a.zip"
        return {"first": archive.read_bytes()[:3], "second": archive.read_bytes()[3:]}

    with serving({"a.zip": b"content"}) as address, caplog.at_level("INFO"):
        download_members(f"{address}a.zip", tmp_path / "new", take)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert contents == {"first": b"con", "second": b"tent"}
    assert caplog.messages == [f"Downloading {address}a.zip"]


def test_a_broken_archive_leaves_nothing(tmp_path):
    def take(archive: Path) -> dict[str, bytes]:
        raise ValueError("It is broken.")

    with serving({"a.zip": b"content"}) as address:
        with pytest.raises(ValueError, match="It is broken"):
            download_members(f"{address}a.zip", tmp_path, take)
        message = r"download .*b\.zip, but got: HTTP Error 404.* put what it holds into"
        with pytest.raises(OSError, match=message):
            download_members(f"{address}b.zip", tmp_path, take)
    assert names(tmp_path) == []
