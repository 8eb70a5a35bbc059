"""Tiny files of downsampled ImageNet in its npz format, and their counts."""

from pathlib import Path

import numpy as np
import pytest

from datamodules import imagenet32


def write_imagenet32(data_dir: Path, n_train: int = 40, n_test: int = 12) -> None:
    """Write ten training files and one test file into ``data_dir``.

    The top row of image ``i`` is red value ``i``, so that a test can tell images apart; test
    images start at 128. Its label in the file is 1000 less ``i``.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = np.array_split(np.arange(n_train), 10)
    batches = {f"train_data_batch_{number}": part for number, part in enumerate(parts, start=1)}
    batches["val_data"] = np.arange(128, 128 + n_test)
    for name, numbers in batches.items():
        images = rng.integers(256, size=(len(numbers), 3, 32, 32), dtype=np.uint8)
        images[:, 0, 0] = numbers[:, None] % 256
        data, labels = images.reshape(-1, 3072), 1000 - numbers
        # The mean, which nobody reads, is short here: the middle of a file is a pixel.
        mean = data.mean(axis=0).astype(np.uint8)
        np.savez(data_dir / f"{name}.npz", data=data, labels=labels, mean=mean)


def accept_imagenet32(
    monkeypatch: pytest.MonkeyPatch, n_train: int = 40, n_test: int = 12
) -> None:
    """Make these the counts of the official variant; the withdrawn one has one image less."""
    counts = {
        "official": {"training": n_train, "test": n_test},
        "withdrawn": {"training": n_train - 1, "test": n_test - 1},
    }
    monkeypatch.setattr(imagenet32, "COUNTS", counts)
