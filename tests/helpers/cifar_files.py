"""Tiny CIFAR-10 files in the official format, and checksums that take them for genuine."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

TRAIN_NAMES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_NAME = "test_batch"
META_NAME = "batches.meta"


def write_cifar10(data_dir: Path, n_train: int = 40, n_test: int = 12) -> None:
    """Write the seven files under ``data_dir/cifar-10-batches-py``.

    The top row of image ``i`` is red value ``i``, so that a test can tell images apart, also
    mirrored ones; test images start at 128. Its label is ``i % 10``.
    """
    folder = data_dir / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    batches = dict(zip(TRAIN_NAMES, np.array_split(np.arange(n_train), 5), strict=True))
    batches[TEST_NAME] = np.arange(128, 128 + n_test)
    for name, numbers in batches.items():
        images = rng.integers(256, size=(len(numbers), 3, 32, 32), dtype=np.uint8)
        images[:, 0, 0] = numbers[:, None] % 256
        content = {
            "batch_label": name,
            "labels": (numbers % 10).tolist(),
            "data": images.reshape(-1, 3072),
            "filenames": [f"{number}.png" for number in numbers],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / META_NAME).write_bytes(
        pickle.dumps({"label_names": [str(label) for label in range(10)]}, protocol=2)
    )


def pack_cifar10(data_dir: Path) -> bytes:
    """Pack the files that are there as the official archive does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(data_dir / CIFAR10.base_folder, CIFAR10.base_folder)
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def accept_cifar10(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make the checksums of the files that are there, and of their archive, the official ones."""

    def entry(name: str) -> list[str]:
        content = (data_dir / CIFAR10.base_folder / name).read_bytes()
        return [name, hashlib.md5(content).hexdigest()]

    monkeypatch.setattr(CIFAR10, "train_list", [entry(name) for name in TRAIN_NAMES])
    monkeypatch.setattr(CIFAR10, "test_list", [entry(TEST_NAME)])
    name, md5 = entry(META_NAME)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"filename": name, "md5": md5})
    md5 = hashlib.md5(pack_cifar10(data_dir)).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
