"""Tiny SVHN files in the official format, and checksums that take them for genuine."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import SVHN

NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def write_svhn(data_dir: Path, n_train: int = 40, n_test: int = 12) -> None:
    """Write both files, as MATLAB 5 files with ``X`` (32, 32, 3, N) and ``y`` (N, 1).

    The top row of image ``i`` is red value ``i``, so that a test can tell images apart; test
    images start at 128. It shows the digit ``i % 10``, whose label is 10 where it is zero.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, numbers in {"train": np.arange(n_train), "test": 128 + np.arange(n_test)}.items():
        images = rng.integers(256, size=(32, 32, 3, len(numbers)), dtype=np.uint8)
        images[0, :, 0] = numbers % 256
        digits = (numbers % 10).astype(np.uint8)
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        content = {"X": images, "y": labels}
        scipy.io.savemat(data_dir / NAMES[split], content, do_compression=True)


def accept_svhn(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make the checksums of the files that are there the official ones."""
    accepted = {
        split: [url, name, hashlib.md5((data_dir / name).read_bytes()).hexdigest()]
        for split, (url, name, _) in SVHN.split_list.items()
        if split in NAMES
    }
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, **accepted})
