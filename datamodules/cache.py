"""Tensors kept in a file between runs, made again where it is broken."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from steer_lightning.utils.io import load_plain, replacing


def cached_tensors(
    path: Path, names: Collection[str], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    r"""Read tensors from a file, or make them and write it.

    By hand, as ``torch.load`` compares no checksums.
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
