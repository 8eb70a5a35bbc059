"""Street View House Numbers as a LightningDataModule that holds all images in memory."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import SVHN

from datamodules.checked_images import CheckedImageDataModule
from datamodules.files import download
from datamodules.images import Pixels

# Torchvision's address, over https.
URL = "https://ufldl.stanford.edu/housenumbers/"

_SPLITS = ("train", "test")


class SVHNDataModule(CheckedImageDataModule):
    r"""Digits of house numbers, 10 classes: 73,257 to train and validate on, 26,032 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 3, H, W)``, float32 (by default
    colour values divided by 255 and nothing else, as in the augmented Neural ODE setting), and
    labels, shape ``(B,)``, int64 in 0 to 9, each the digit itself (the files have 10 for digit
    0). The validation set is split from the training file, keyed by ``seed``; the test file is
    never part of it, and the file of extra images is not used. Predict uses the test set.

    The folder is only written to when ``download`` is true and a file is missing or broken. Each
    file's MD5 checksum is compared with the official one before any is opened.

    Args:
        data_dir: Folder that holds ``train_32x32.mat`` and ``test_32x32.mat`` (torchvision's
            layout).
        batch_size: Images in a training batch.
        eval_batch_size: Images in any other batch; ``None`` means ``batch_size``.
        val_size: Images split off the training file for validation.
        limit_train: Keep this many training images after the split; ``None`` keeps all.
        image_size: Height and width, a divisor of 32; smaller images are averages over windows.
        pixels: ``"unit"`` gives values in [0, 1], colour values divided by 255. ``"grey"`` gives
            whole numbers from 0 to 255, for flows that add noise to them; averages over windows
            are then rounded to whole numbers (halves to the even one).
        download: Download missing or broken files.
        num_workers: Loader processes.
        seed: Key of the split and the order.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails or a file cannot be written.

    References:
        Netzer et al., *Reading digits in natural images with unsupervised feature learning*, NIPS
        workshop, 2011.

    Example:
        >>> data = SVHNDataModule("data/svhn")
        >>> data.image_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    title = "SVHN"
    native_shape = (3, 32, 32)
    num_classes = 10

    def __init__(
        self,
        data_dir: str = "data/svhn",
        batch_size: int = 256,
        eval_batch_size: int | None = 1000,
        val_size: int = 5000,
        limit_train: int | None = None,
        image_size: int = 32,
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
        """Folder of the files."""
        return Path(self.data_dir)

    @property
    def layout(self) -> str:
        return " and ".join(f"`{name}`" for name in self.checksums())

    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each file, by name."""
        return {name: md5 for _, name, md5 in (SVHN.split_list[split] for split in _SPLITS)}

    def fetch(self, names: Collection[str]) -> None:
        for name in names:
            check = partial(self.check_download, md5=self.checksums()[name])
            download(f"{URL}{name}", self.folder / name, check)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = SVHN(self.data_dir, "train" if train else "test")
        images = torch.from_numpy(files.data).contiguous()
        return images, torch.from_numpy(files.labels)
