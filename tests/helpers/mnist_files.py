"""Tiny MNIST files in the official IDX format."""

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from datamodules import image_sets


def idx_bytes(array: Tensor) -> bytes:
    """Encode a uint8 tensor as an IDX file."""
    header = bytes([0, 0, 8, array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
    return header + bytes(array.contiguous().flatten().tolist())


def write_mnist(
    data_dir: Path, n_train: int = 40, n_test: int = 12, side: int = 28
) -> dict[str, Tensor]:
    """Write the four files under ``data_dir/MNIST/raw``; return their contents by name.

    Image ``i`` has grey value ``i`` in its first pixel, so that a test can tell images apart; the
    first pixels of test images start at 128.
    """
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    contents = {}
    for prefix, n, first in (("train", n_train, 0), ("t10k", n_test, 128)):
        images = torch.randint(256, (n, side, side), generator=generator, dtype=torch.uint8)
        images[:, 0, 0] = torch.arange(first, first + n) % 256
        contents[f"{prefix}-images-idx3-ubyte"] = images
        contents[f"{prefix}-labels-idx1-ubyte"] = (torch.arange(n) % 10).to(torch.uint8)
    for name, array in contents.items():
        (raw / name).write_bytes(idx_bytes(array))
    return contents


def pack_mnist(data_dir: Path) -> dict[str, bytes]:
    """Pack each of the files that are there as the server has it, by its name there."""
    raw = data_dir / "MNIST" / "raw"
    return {
        f"{name}.gz": gzip.compress((raw / name).read_bytes(), 1, mtime=0)
        for name in image_sets.OFFICIAL
    }


def accept_mnist(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make the sizes and checksums of the files that are there those of MNIST's own."""
    archives = pack_mnist(data_dir)
    paths = [data_dir / "MNIST" / "raw" / name for name in image_sets.OFFICIAL]
    contents = {path.name: path.read_bytes() for path in paths}
    own = {name: (len(data), hashlib.md5(data).hexdigest()) for name, data in contents.items()}
    monkeypatch.setattr(image_sets, "OFFICIAL", own)
    packed = [(name, hashlib.md5(archive).hexdigest()) for name, archive in archives.items()]
    monkeypatch.setattr(MNIST, "resources", packed)
