"""Files that appear whole or not at all: downloads and caches."""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from steer_lightning.utils.io import load_plain, replacing

_TIMEOUT_SECONDS = 60
_THIS_MACHINE = ("127.0.0.1", "::1")


def cached_tensors(
    path: Path, names: Collection[str], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    r"""Read tensors from a file, or make them and write it.

    The file holds plain tensors and is read so that it can run nothing. One that cannot be read,
    whose checksums are wrong, or that lacks a name, is made again.

    Args:
        path: The file; its name has to tell apart whatever makes a difference to the tensors.
        names: Names of the tensors.
        make: Makes the tensors, by name.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ones.pt")
        ...     first = cached_tensors(path, ["x"], lambda: {"x": torch.ones(2)})
        ...     again = cached_tensors(path, ["x"], lambda: {"x": torch.zeros(2)})
        >>> again["x"]
        tensor([1., 1.])
    """
    if path.is_file():
        try:
            tensors = load_plain(path)
            if set(tensors) == set(names):
                return {name: tensors[name] for name in names}
        except Exception as error:  # Broken bytes may raise nearly anything.
            rank_zero_info(f"The cache {path} cannot be read ({type(error).__name__}).")
        rank_zero_info(f"The cache {path} is broken and is made again.")
    tensors = make()
    try:
        with replacing(path) as temporary:
            torch.save(tensors, temporary)
    except (OSError, RuntimeError) as error:  # Torch reports a full disk as a RuntimeError.
        raise OSError(
            f"Expected to write the cache {path}, but got: {error} Set `--data.cache_dir` to a "
            "folder that can be written to and has room."
        ) from error
    return tensors


def download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    r"""Download a file, check it, and only then give it its name.

    Any number of processes may download the same file at once; a killed one leaves nothing but a
    temporary file, whose name starts with a dot.

    Args:
        url: Where it is, over https; plain http is for servers on this machine alone.
        path: Name of the finished file.
        check: Raises ``ValueError`` if the content is not what it should be. It is given a
            temporary path.

    Raises:
        OSError: If the file cannot be downloaded or written, or is shorter or longer than
            announced.
        ValueError: If the check fails, or the url or one that it leads to is not https.
    """
    with _explained(url, f"put it at {path}"), replacing(path) as temporary:
        _receive(url, temporary)
        check(temporary)


def download_members(url: str, folder: Path, take: Callable[[Path], Mapping[str, bytes]]) -> None:
    r"""Download an archive, take files out of it, and keep those alone.

    Nothing is extracted by names that the archive holds: the caller reads what it needs and names
    it. Each file appears whole or not at all, as with :func:`download`.

    Args:
        url: Where the archive is, over https; plain http is for servers on this machine alone.
        folder: Folder of the finished files.
        take: Checks the archive and returns the content of each file by its name, or raises
            ``ValueError``. It is given a temporary path that ends like the url.

    Raises:
        OSError: If the archive cannot be downloaded or a file not written, or the archive is
            shorter or longer than announced.
        ValueError: If the archive is broken, or the url or one that it leads to is not https.
    """
    with _explained(url, f"put what it holds into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            archive = Path(temporary, url.rpartition("/")[2])
            _receive(url, archive)
            for name, content in take(archive).items():
                with replacing(folder / name) as file:
                    file.write_bytes(content)


@contextmanager
def _explained(url: str, by_hand: str) -> Iterator[None]:
    """Say of errors of the connection or the disk what was to be done, and what to do."""
    _check_address(url)
    rank_zero_info(f"Downloading {url}")
    try:
        yield
    except (OSError, HTTPException) as error:
        raise OSError(
            f"Expected to download {url}, but got: {error}. Check the connection, set "
            "`--data.data_dir` to a folder that can be written to and has room, or get the file "
            f"by hand and {by_hand}."
        ) from error


def _receive(url: str, path: Path) -> None:
    with path.open("wb") as file, _OPENER.open(url, timeout=_TIMEOUT_SECONDS) as response:
        announced = response.headers.get("Content-Length")
        shutil.copyfileobj(response, file)
    size = path.stat().st_size
    if announced is not None and size != int(announced):
        raise OSError(f"{size} bytes of the {announced} announced, so the connection broke")


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _THIS_MACHINE):
        return
    raise ValueError(
        f"Expected an https address to download from, but got {url}: on the way, anyone could "
        "replace the file. Get it by hand from a source that you trust."
    )


class _CheckedRedirects(HTTPRedirectHandler):
    """Follows redirects, but not away from https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_CheckedRedirects)
