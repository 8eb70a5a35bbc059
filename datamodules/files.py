"""Files that appear whole or not at all: downloads and caches."""

import shutil
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from steer_lightning.files import replacing

_TIMEOUT_SECONDS = 60


def cached_tensors(
    path: Path, names: Collection[str], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    r"""Read tensors from a file, or make them and write it.

    The file holds plain tensors and is read with ``weights_only=True``, so that it can run
    nothing. One that cannot be read, or that lacks a name, is made again.

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
            tensors = torch.load(path, map_location="cpu", weights_only=True)
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

    Args:
        url: Where it is.
        path: Name of the finished file.
        check: Raises ``ValueError`` if the content is not what it should be. It is given a
            temporary path.

    Raises:
        OSError: If the file cannot be downloaded, or is shorter or longer than announced.
        ValueError: If the check fails.
    """
    rank_zero_info(f"Downloading {url}")
    with replacing(path) as temporary:
        try:
            with urlopen(url, timeout=_TIMEOUT_SECONDS) as response, temporary.open("wb") as file:
                announced = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file)
        except (OSError, HTTPException) as error:
            raise OSError(
                f"Expected to download {url}, but got: {error}. Check the connection, or get the "
                f"file by hand and put it at {path}."
            ) from error
        size = temporary.stat().st_size
        if announced is not None and size != int(announced):
            raise OSError(
                f"Expected {announced} bytes from {url}, but got {size}. The connection broke: "
                "try again."
            )
        check(temporary)
