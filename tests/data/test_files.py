import hashlib
import os
from pathlib import Path

import pytest
import requests

from datamodules.files import download, read_file, whole
from tests.helpers.http_server import serving


def parts(archive: Path) -> dict[str, bytes]:
    if archive.read_bytes() == b"broken":
        raise ValueError("It is broken.")
    return {"first": archive.read_bytes()[:3], "second": archive.read_bytes()[3:]}


def test_only_regular_files_are_read_and_no_more_than_allowed(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "a") == read_file(tmp_path / "link", 7) == b"content"
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name, largest in (("a", 6), ("zero", 7), ("pipe", 7)):
        message = f"Expected .*{name} to be a regular file of at most {largest} bytes.* not opened"
        with pytest.raises(ValueError, match=message):
            read_file(tmp_path / name, largest)


def test_what_is_taken_is_kept_and_the_archive_is_not(tmp_path, capfd):
    # A server may send elsewhere.
    with serving({"a.zip": b"content", "b": "/a.zip"}) as address:
        download(f"{address}a.zip", tmp_path / "new", parts, hashlib.md5(b"content").hexdigest())
        contents = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
        download(f"{address}b", tmp_path, whole)
    assert contents == {"first": b"con", "second": b"tent"}
    assert (tmp_path / "b").read_bytes() == b"content"
    assert "100%" in capfd.readouterr().err  # the progress bar


@pytest.mark.parametrize(
    ("name", "announce_more", "error", "message"),
    [
        ("missing", 0, OSError, "to download .*missing, but got: 404 .* get the file by hand"),
        ("a.zip", 5, OSError, r"to download .*a.zip, but got: .*(5 more|Incomplete)"),
        ("broken", 0, ValueError, "It is broken."),
        ("other", 0, ValueError, "MD5 hash of downloaded file .other. does not match"),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, name, announce_more, error, message):
    contents = {"a.zip": b"content", "broken": b"broken", "other": b"content"}
    md5 = hashlib.md5(b"expected").hexdigest() if name == "other" else None
    with serving(contents, announce_more) as address, pytest.raises(error, match=message):
        download(f"{address}{name}", tmp_path, parts, md5)
    assert not [*tmp_path.iterdir()]


def test_no_connection_raises(tmp_path):
    with serving({}) as address:
        pass
    with pytest.raises(OSError, match=r"Expected to download .*refused.*\. Check the connection,"):
        download(f"{address}a.txt", tmp_path, whole)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.txt",
        "http://127.0.0.1.example.org/a.txt",
        "http://127.0.0.1@example.org/a.txt",
        "file:///etc/hostname",
        "example.org/a.txt",
    ],
)
def test_addresses_without_https_are_refused(tmp_path, url):
    message = f"Expected an https address to download from, but got {url}: .* Get it by hand"
    with pytest.raises(ValueError, match=message):
        download(url, tmp_path / "new", whole)
    assert not [*tmp_path.iterdir()]


def test_https_is_asked_for_and_no_other_address_is_read(tmp_path, monkeypatch):
    asked = []

    def get(url: str, hooks, **_):
        asked.append(url)
        elsewhere = requests.Response()
        elsewhere.url = "http://example.org/b"
        hooks["response"](elsewhere)

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ValueError, match=r"https address .* but got http://example\.org/b"):
        download("https://example.org/a.txt", tmp_path, whole)
    assert asked == ["https://example.org/a.txt"]
    assert not [*tmp_path.iterdir()]
