"""Downloads by pooch: over https, checked before a file gets its name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pooch

from steer_lightning.utils.io import replacing

_THIS_MACHINE = ("127.0.0.1", "::1")


def download(
    url: str, folder: Path, take: Callable[[Path], Mapping[str, bytes]], md5: str | None = None
) -> None:
    r"""Download a file or an archive, check it, and keep what is taken out of it.

    Nothing is extracted by names that an archive holds: ``take`` reads what is needed and names
    it. Any number of processes may download the same file at once; a killed one leaves nothing
    but a temporary folder, whose name starts with a dot.

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
    fetch = pooch.HTTPDownloader(
        progressbar=True, chunk_size=2**20, hooks={"response": _check_response}
    )
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


def _check_response(response: Any, **_: Any) -> None:
    """Refuse an address that a server leads to, before it is read."""
    _check_address(response.url)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in _THIS_MACHINE
    if not local and (parts.scheme != "https" or not parts.hostname):
        raise ValueError(
            f"Expected an https address to download from, but got {url}: on the way, anyone "
            "could replace the file. Get it by hand from a source that you trust."
        )
