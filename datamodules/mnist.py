"""MNIST as a LightningDataModule that holds all images in memory."""

import math
import struct
from pathlib import Path

from torch import Tensor
from torchvision.datasets import MNIST

from datamodules.images import ImageDataModule, Pixels

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
        "Delete the file and set `--data.download true`, or set `--data.data_dir` to a folder "
        "with complete files."
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


class MNISTDataModule(ImageDataModule):
    r"""Handwritten digits, 10 classes: 60,000 images to train and validate on, 10,000 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 1, H, W)``, float32 (by default
    grey values divided by 255 and nothing else, as in the augmented Neural ODE setting), and
    labels, shape ``(B,)``, int64 in 0 to 9. The validation set is split from the training files,
    keyed by ``seed``; the test files are never part of it. Predict uses the test set.

    The folder is only written to when ``download`` is true and a file is missing. Every file's
    header is checked against its size before it is used.

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
        download: Download missing files with torchvision.
        num_workers: Loader processes.
        seed: Key of the split and the order.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681.

    Example:
        >>> data = MNISTDataModule("data/mnist", image_size=14)
        >>> data.image_shape, data.num_classes
        ((1, 14, 14), 10)
    """

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

    def prepare_data(self) -> None:
        """Download what is missing, if ``download`` is true; one process on each node.

        Files are checked here too, before a run makes its folders.

        Raises:
            ValueError: If a file is broken.
            FileNotFoundError: If a file is missing.
        """
        if self.download:
            MNIST(self.data_dir, download=True)
        super().prepare_data()

    def check_files(self) -> None:
        raw = Path(self.data_dir, "MNIST", "raw")
        for images_name, labels_name in _FILES.values():
            images_shape = read_idx_shape(raw / images_name)
            labels_shape = read_idx_shape(raw / labels_name)
            n = labels_shape[0]
            if n == 0 or labels_shape != (n,) or images_shape != (n, _SIDE, _SIDE):
                raise ValueError(
                    f"Expected {raw / images_name} to hold N > 0 images of {_SIDE}x{_SIDE} and "
                    f"{labels_name} as many labels, but got shapes {images_shape} and "
                    f"{labels_shape}. Set `--data.data_dir` to MNIST's own files, or delete both "
                    "and set `--data.download true`."
                )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = MNIST(self.data_dir, train=train)
        return files.data.unsqueeze(1), files.targets
