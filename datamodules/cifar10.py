"""CIFAR-10 as a LightningDataModule that holds all images in memory."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules.checked_images import CheckedImageDataModule
from datamodules.images import Pixels


class CIFAR10DataModule(CheckedImageDataModule):
    r"""Small colour photographs, 10 classes: 50,000 to train and validate on, 10,000 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 3, H, W)``, float32, and labels,
    shape ``(B,)``, int64 in 0 to 9. The validation set is split from the training files, keyed by
    ``seed``; the test file is never part of it. Predict uses the test set.

    The folder is only written to when ``download`` is true and a file is missing or broken. The
    files are pickles: each one's MD5 checksum is compared with the official one before any is
    opened.

    Args:
        data_dir: Folder that holds ``cifar-10-batches-py`` (torchvision's layout) with the
            unpacked files of the Python version.
        batch_size: Images in a training batch.
        eval_batch_size: Images in any other batch; ``None`` means ``batch_size``.
        val_size: Images split off the training files for validation.
        limit_train: Keep this many training images after the split; ``None`` keeps all.
        image_size: Height and width, a divisor of 32; smaller images are averages over windows.
        pixels: ``"unit"`` gives values in [0, 1], grey values divided by 255. ``"grey"`` gives
            whole numbers from 0 to 255, for flows that add noise to them; averages over windows
            are then rounded to whole numbers (halves to the even one), and bits per dimension
            are those of the rounded small images.
        horizontal_flip: Mirror each training image left to right with probability 1/2, anew in
            each epoch; which ones depends on ``(seed, epoch)`` and the image alone.
        download: Download missing or broken files with torchvision.
        num_workers: Loader processes.
        seed: Key of the split, the order and the mirror images.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.

    Example:
        >>> data = CIFAR10DataModule("data/cifar10", pixels="grey")
        >>> data.image_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    title = "CIFAR-10"
    native_shape = (3, 32, 32)
    num_classes = 10

    def __init__(
        self,
        data_dir: str = "data/cifar10",
        batch_size: int = 256,
        eval_batch_size: int | None = 1000,
        val_size: int = 5000,
        limit_train: int | None = None,
        image_size: int = 32,
        pixels: Pixels = "unit",
        horizontal_flip: bool = False,
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
            horizontal_flip=horizontal_flip,
            num_workers=num_workers,
            seed=seed,
        )
        self.download = download

    @property
    def folder(self) -> Path:
        """Folder of the unpacked files."""
        return Path(self.data_dir, CIFAR10.base_folder)

    @property
    def layout(self) -> str:
        return f"`{CIFAR10.base_folder}` with the {len(self.checksums())} unpacked files"

    @property
    def leftovers(self) -> str:
        return f"the folder, and {CIFAR10.filename} beside it,"

    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each file, by name."""
        files = [*CIFAR10.train_list, *CIFAR10.test_list]
        return dict([*files, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])

    def fetch(self) -> None:
        CIFAR10(self.data_dir, download=True)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        # Torchvision compares the checksums again before it unpickles.
        files = CIFAR10(self.data_dir, train=train)
        images = torch.from_numpy(files.data).permute(0, 3, 1, 2)
        return images, torch.tensor(files.targets)
