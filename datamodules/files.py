"""Files of data sets: bounded reads, and downloads by pooch that are checked before they stay."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pooch

from steer_lightning.utils.io import replacing

_LARGEST = 2**28


def read_file(path: Path, largest: int = _LARGEST) -> bytes:
    """Read a file; ``ValueError`` for a device, a pipe, or more than ``largest`` bytes."""
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(
            f"Expected {path} to be a regular file of at most {largest} bytes, but it is larger, "
            "or a device or pipe; it was not opened. Get the file from its official source again."
        )
    with path.open("rb") as file:
        return file.read(largest)


def download(
    url: str, folder: Path, take: Callable[[Path], Mapping[str, bytes]], md5: str | None = None
) -> None:
    r"""Download a file or an archive, check it, and keep what is taken out of it.

    Any number of processes may download the same file at once; a killed one leaves nothing but a
    temporary folder, whose name starts with a dot.

    Args:
        url: Address, over https; plain http is for servers on this machine alone.
        folder: Folder of the finished files.
        take: Checks the download and returns the content of each file by its name, or raises
            ``ValueError``. It is given a temporary path that ends like the url.
        md5: Checksum of the download; ``None`` leaves all checks to ``take``.

    Raises:
        OSError: If the download fails or breaks off, or a file cannot be written.
        ValueError: If the checksum is another or a check fails, or the url or one that it leads
            to is not https.
    """
    _check_address(url)
    # A server may lead elsewhere: that address is checked before it is read.
    hooks = {"response": lambda response, **_: _check_address(response.url)}
    fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**20, hooks=hooks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            name, known_hash = url.rpartition("/")[2], None if md5 is None else f"md5:{md5}"
            path = pooch.retrieve(url, known_hash, name, temporary, downloader=fetch)
            for name, content in take(Path(path)).items():
                # By hand, as pooch would name a file before it is on the disk.
                with replacing(folder / name) as file:
                    file.write_bytes(content)
    except OSError as error:
        raise OSError(
            f"Expected to download {url}, but got: {error}. Check the connection, set "
            "`--data.data_dir` to a folder that can be written to and has room, or get the file "
            f"by hand and put it, or what it holds, into {folder}."
        ) from error


def whole(path: Path) -> dict[str, bytes]:
    """Take a download as it is, under its own name."""
    return {path.name: path.read_bytes()}


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1")
    if not local and (parts.scheme != "https" or not parts.hostname):
        raise ValueError(
            f"Expected an https address to download from, but got {url}: on the way, anyone "
            "could replace the file. Get it by hand from a source that you trust."
        )
