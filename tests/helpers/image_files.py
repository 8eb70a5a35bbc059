"""Tiny files of CIFAR-10, SVHN and ImageNet 32x32 in their official formats, taken for genuine.

The top row of image ``i`` is red value ``i``, so that a test can tell images apart, also mirrored
ones; test images start at 128. MNIST is in ``mnist_files.py``.
"""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, SVHN

from datamodules import imagenet32

CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_TEST, CIFAR_META = "test_batch", "batches.meta"
SVHN_NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def numbered_images(*parts: np.ndarray) -> list[np.ndarray]:
    """Noise for each part's numbers, shape ``(N, 3, 32, 32)``, uint8, but for the top rows."""
    rng, images = np.random.default_rng(0), []
    for numbers in parts:
        images.append(rng.integers(256, size=(len(numbers), 3, 32, 32), dtype=np.uint8))
        images[-1][:, 0, 0] = numbers[:, None] % 256
    return images


def write_cifar10(data_dir: Path) -> None:
    """Write the seven files under ``data_dir/cifar-10-batches-py``; labels are ``i % 10``."""
    folder = data_dir / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = [*np.array_split(np.arange(40), 5), np.arange(128, 140)]
    names = (*CIFAR_TRAIN, CIFAR_TEST)
    for name, numbers, images in zip(names, parts, numbered_images(*parts), strict=True):
        content = {
            "batch_label": name,
            "labels": (numbers % 10).tolist(),
            "data": images.reshape(-1, 3072),
            "filenames": [f"{number}.png" for number in numbers],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"label_names": [str(label) for label in range(10)]}
    (folder / CIFAR_META).write_bytes(pickle.dumps(meta, protocol=2))


def pack_cifar10(data_dir: Path) -> bytes:
    """Pack the files that are there as the official archive does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(data_dir / CIFAR10.base_folder, CIFAR10.base_folder)
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def accept_cifar10(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make the checksums of the files that are there, and of their archive, the official ones."""
    folder = data_dir / CIFAR10.base_folder
    *train, test, (name, md5) = (
        [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
        for name in (*CIFAR_TRAIN, CIFAR_TEST, CIFAR_META)
    )
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"filename": name, "md5": md5})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(pack_cifar10(data_dir)).hexdigest())


def write_svhn(data_dir: Path) -> None:
    """Write both files, as MATLAB 5 files with ``X`` (32, 32, 3, N) and ``y`` (N, 1).

    Image ``i`` shows the digit ``i % 10``, whose label is 10 where it is zero.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    parts = [np.arange(40), np.arange(128, 140)]
    for name, numbers, images in zip(
        SVHN_NAMES.values(), parts, numbered_images(*parts), strict=True
    ):
        labels = np.where(numbers % 10 == 0, 10, numbers % 10).astype(np.uint8)[:, None]
        content = {"X": images.transpose(2, 3, 1, 0), "y": labels}
        scipy.io.savemat(data_dir / name, content, do_compression=True)


def accept_svhn(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make the checksums of the files that are there the official ones."""
    accepted = {
        split: [SVHN.split_list[split][0], name, hashlib.md5(content).hexdigest()]
        for split, name in SVHN_NAMES.items()
        for content in [(data_dir / name).read_bytes()]
    }
    monkeypatch.setattr(SVHN, "split_list", SVHN.split_list | accepted)


def write_imagenet32(data_dir: Path, n_train: int = 40, n_test: int = 12) -> None:
    """Write ten training files and one test file; the label of image ``i`` is 1000 less ``i``."""
    data_dir.mkdir(parents=True, exist_ok=True)
    parts = [*np.array_split(np.arange(n_train), 10), np.arange(128, 128 + n_test)]
    names = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]
    for name, numbers, images in zip(names, parts, numbered_images(*parts), strict=True):
        data = images.reshape(-1, 3072)
        # The mean, which nobody reads, is short here: the middle of a file is a pixel.
        mean = data.mean(axis=0).astype(np.uint8)
        np.savez(data_dir / f"{name}.npz", data=data, labels=1000 - numbers, mean=mean)


def accept_imagenet32(
    monkeypatch: pytest.MonkeyPatch, n_train: int = 40, n_test: int = 12
) -> None:
    """Make these the counts of the official variant; the withdrawn one has one image less."""
    counts = {
        "official": {"training": n_train, "test": n_test},
        "withdrawn": {"training": n_train - 1, "test": n_test - 1},
    }
    monkeypatch.setattr(imagenet32, "COUNTS", counts)
