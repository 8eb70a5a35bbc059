"""CIFAR-10 as a LightningDataModule that holds all images in memory."""

import tarfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules.checked_images import CheckedImageDataModule
from datamodules.files import download_members
from datamodules.images import Pixels
from datamodules.safe_pickle import load_pickle


class CIFAR10DataModule(CheckedImageDataModule):
    r"""Small colour photographs, 10 classes: 50,000 to train and validate on, 10,000 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 3, H, W)``, float32, and labels,
    shape ``(B,)``, int64 in 0 to 9. The validation set is split from the training files, keyed by
    ``seed``; the test file is never part of it. Predict uses the test set.

    The folder is only written to when ``download`` is true and a file is missing or broken. The
    files are pickles: each one's MD5 checksum is compared with the official one before any is
    opened, and they are read without running code that a pickle may hold.

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
        download: Download missing or broken files.
        num_workers: Loader processes.
        seed: Key of the split, the order and the mirror images.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails or a file cannot be written.

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

    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each file, by name."""
        files = [*CIFAR10.train_list, *CIFAR10.test_list]
        return dict([*files, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])

    def fetch(self, names: Collection[str]) -> None:
        def take(archive: Path) -> dict[str, bytes]:
            self.check_download(archive, CIFAR10.tgz_md5)
            wanted = {f"{CIFAR10.base_folder}/{name}": name for name in names}
            with tarfile.open(archive) as members:
                return {
                    wanted[member.name]: file.read()
                    for member in members
                    if member.name in wanted and (file := members.extractfile(member))
                }

        download_members(CIFAR10.url, self.folder, take)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = CIFAR10.train_list if train else CIFAR10.test_list
        batches = [load_pickle(self.folder / name) for name, _ in files]
        images = np.concatenate([batch["data"] for batch in batches])
        labels = [label for batch in batches for label in batch["labels"]]
        return torch.from_numpy(images).view(-1, *self.native_shape), torch.tensor(labels)
