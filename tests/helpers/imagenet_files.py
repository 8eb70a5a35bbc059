"""Tiny files of downsampled ImageNet in its official formats, and their counts."""

import pickle
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from datamodules import imagenet32

Format = Literal["pickle", "npz", "python2"]


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """What ``pickle.dumps({"data": data, "labels": labels}, 2)`` gave in Python 2.

    Its strings are byte strings, for which Python 3 has no writer.
    """

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    shape = b"(" + b"".join(whole(length) for length in data.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + whole(-1) * 2 + b"K\x00tb"
    raw = b"T" + struct.pack("<i", data.nbytes) + data.tobytes()
    array = empty + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(whole(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def batch_bytes(data: np.ndarray, labels: list[int]) -> bytes:
    """Encode one file as the official pickles are."""
    mean = data.mean(axis=0)
    return pickle.dumps({"data": data, "labels": labels, "mean": mean}, protocol=3)


def write_imagenet32(
    data_dir: Path, n_train: int = 40, n_test: int = 12, form: Format = "pickle"
) -> None:
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
        data, labels = images.reshape(-1, 3072), (1000 - numbers).tolist()
        if form == "npz":
            np.savez(data_dir / f"{name}.npz", data=data, labels=labels, mean=data.mean(axis=0))
        elif form == "python2":
            (data_dir / name).write_bytes(python2_pickle(data, labels))
        else:
            (data_dir / name).write_bytes(batch_bytes(data, labels))


def accept_imagenet32(
    monkeypatch: pytest.MonkeyPatch, n_train: int = 40, n_test: int = 12
) -> None:
    """Make these the counts of the official variant; the withdrawn one has one image less."""
    counts = {
        "official": {"training": n_train, "test": n_test},
        "withdrawn": {"training": n_train - 1, "test": n_test - 1},
    }
    monkeypatch.setattr(imagenet32, "COUNTS", counts)
