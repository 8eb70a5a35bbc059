"""MNIST as a LightningDataModule that holds all images in memory."""

import gzip
import math
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from datamodules.checked_images import CheckedImageDataModule
from datamodules.files import download_members
from datamodules.images import Pixels

# Where torchvision gets the files first.
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# Entries of each file, and its MD5 checksum unpacked; torchvision's are those of the archives.
OFFICIAL = {
    "train-images-idx3-ubyte": (60_000, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_000, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (10_000, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_000, "27ae3e4e09519cfbb04c329615203637"),
}

_SIDE = 28
_UBYTE = 0x08
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx_shape(path: Path) -> tuple[int, ...]:
    r"""Read the shape in the header of an uncompressed IDX file and check it against the size.

    The header is two zero bytes, the type (8 for unsigned bytes), the number of axes, and each
    axis as a big-endian 32-bit integer.

    Args:
        path: The file.

    Returns:
        Length of each axis.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the header is not that of an IDX file of bytes, or the file is shorter or
            longer than its header says.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        ...     read_idx_shape(path)
        (2,)
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the MNIST file {path}, but it does not exist. Set `--data.download true`, "
            "or `--data.data_dir` to the folder that holds `MNIST/raw` with the four unpacked "
            "files."
        )
    remedy = (
        "Set `--data.download true` to replace it, or set `--data.data_dir` to a folder with "
        "complete files."
    )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        axes = head[3] if len(head) == 4 else 0
        lengths = file.read(4 * axes)
    if head[:3] != bytes([0, 0, _UBYTE]) or axes == 0 or len(lengths) < 4 * axes:
        raise ValueError(
            f"Expected {path} to start with the header of an IDX file of bytes (00 00 08 and the "
            f"axes), but got {head.hex(' ') or 'nothing'} in a file of {size} bytes. {remedy}"
        )
    shape = struct.unpack(f">{axes}I", lengths)
    expected = 4 + 4 * axes + math.prod(shape)
    if size != expected:
        raise ValueError(
            f"Expected {path} to have {expected} bytes for its shape {shape}, but got {size}. "
            f"{remedy}"
        )
    return shape


def read_idx(path: Path) -> Tensor:
    r"""Read an uncompressed IDX file of bytes.

    Args:
        path: The file.

    Returns:
        Its content, uint8, in the shape that its header says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, see :func:`read_idx_shape`.
    """
    shape = read_idx_shape(path)
    content = np.fromfile(path, dtype=np.uint8, offset=4 + 4 * len(shape))
    return torch.from_numpy(content).view(shape)


class MNISTDataModule(CheckedImageDataModule):
    r"""Handwritten digits, 10 classes: 60,000 images to train and validate on, 10,000 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 1, H, W)``, float32 (by default
    grey values divided by 255 and nothing else, as in the augmented Neural ODE setting), and
    labels, shape ``(B,)``, int64 in 0 to 9. The validation set is split from the training files,
    keyed by ``seed``; the test files are never part of it. Predict uses the test set.

    The folder is only written to when ``download`` is true and a file is missing or broken. Every
    file's header is checked against its size before it is used, and the MD5 checksum is compared
    with that of MNIST's own where it has as many entries: part of MNIST is taken as it is.

    Args:
        data_dir: Folder that holds ``MNIST/raw`` (torchvision's layout) with the four unpacked
            files.
        batch_size: Images in a training batch.
        eval_batch_size: Images in any other batch; ``None`` means ``batch_size``.
        val_size: Images split off the training files for validation.
        limit_train: Keep this many training images after the split; ``None`` keeps all.
        image_size: Height and width, a divisor of 28; smaller images are averages over windows.
        pixels: ``"unit"`` gives values in [0, 1], grey values divided by 255. ``"grey"`` gives
            whole numbers from 0 to 255, for flows that add noise to them; averages over windows
            are then rounded to whole numbers (halves to the even one), and bits per dimension
            are those of the rounded small images.
        download: Download missing or broken files.
        num_workers: Loader processes.
        seed: Key of the split and the order.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails or a file cannot be written.

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681.

    Example:
        >>> data = MNISTDataModule("data/mnist", image_size=14)
        >>> data.image_shape, data.num_classes
        ((1, 14, 14), 10)
    """

    title = "MNIST"
    native_shape = (1, _SIDE, _SIDE)
    num_classes = 10

    def __init__(
        self,
        data_dir: str = "data/mnist",
        batch_size: int = 256,
        eval_batch_size: int | None = 1000,
        val_size: int = 5000,
        limit_train: int | None = None,
        image_size: int = _SIDE,
        pixels: Pixels = "unit",
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            data_dir=data_dir,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_size=val_size,
            limit_train=limit_train,
            image_size=image_size,
            pixels=pixels,
            num_workers=num_workers,
            seed=seed,
        )
        self.download = download

    @property
    def folder(self) -> Path:
        """Folder of the unpacked files."""
        return Path(self.data_dir, "MNIST", "raw")

    @property
    def layout(self) -> str:
        return "`MNIST/raw` with the four unpacked files"

    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each unpacked file, by name."""
        return {name: md5 for name, (_, md5) in OFFICIAL.items()}

    def fetch(self, names: Collection[str]) -> None:
        def unpack(archive: Path) -> dict[str, bytes]:
            self.check_download(archive, dict(MNIST.resources)[archive.name])
            return {archive.stem: gzip.decompress(archive.read_bytes())}

        for name in names:
            download_members(f"{URL}{name}.gz", self.folder, unpack)

    def check_file(self, path: Path, md5: str) -> None:
        n, *_ = read_idx_shape(path)
        if n == OFFICIAL[path.name][0]:
            super().check_file(path, md5)

    def check_files(self) -> None:
        super().check_files()
        for images_name, labels_name in _FILES.values():
            images_shape, labels_shape = (
                read_idx_shape(self.folder / name) for name in (images_name, labels_name)
            )
            n = labels_shape[0]
            if n == 0 or labels_shape != (n,) or images_shape != (n, _SIDE, _SIDE):
                raise ValueError(
                    f"Expected {self.folder / images_name} to hold N > 0 images of "
                    f"{_SIDE}x{_SIDE} and {labels_name} as many labels, but got shapes "
                    f"{images_shape} and {labels_shape}. Set `--data.data_dir` to MNIST's own "
                    "files, or delete both and set `--data.download true`."
                )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        paths = [self.folder / name for name in _FILES["train" if train else "test"]]
        images, labels = map(read_idx, paths)
        if int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"Expected labels 0 to {self.num_classes - 1} in {paths[1]}, but got "
                f"{int(labels.max())}. Delete the file and set `--data.download true`, or set "
                "`--data.data_dir` to a folder with complete files."
            )
        return images.unsqueeze(1), labels.long()
