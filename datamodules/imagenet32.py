"""Downsampled ImageNet, 32x32, as a LightningDataModule that holds all images in memory."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.images import ImageDataModule
from steer_lightning.utils.checks import check_choice

Variant = Literal["official", "withdrawn"]

# Images in the files of each variant.
COUNTS: dict[str, dict[str, int]] = {
    "official": {"training": 1_281_167, "test": 50_000},
    "withdrawn": {"training": 1_281_149, "test": 49_999},
}

_PIXELS = 3 * 32 * 32
_CLASSES = 1000
_NAMES = {
    "training": [f"train_data_batch_{number}.npz" for number in range(1, 11)],
    "test": ["val_data.npz"],
}
_AGAIN = "Unpack or download the file again."


def count_images(path: Path) -> int:
    r"""Read how many images ``N > 0`` a file holds; of its arrays the headers alone.

    A ``.npz`` file has ``data``, uint8 of shape ``(N, 3072)``, channels first, and ``labels``,
    ``N`` integers; ``ValueError`` if it is broken or holds something else.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                found = {}
                for key in ("data", "labels"):
                    with members.open(f"{key}.npy") as member:
                        np.lib.format.read_magic(member)
                        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                        found[key] = shape, dtype
        except Exception as error:  # Broken bytes may raise nearly anything.
            raise ValueError(_incomplete(path, error)) from error
    (shape, dtype), (labels_shape, labels_dtype) = found["data"], found["labels"]
    if dtype != np.uint8 or len(shape) != 2 or shape[1] != _PIXELS or shape[0] == 0:
        raise ValueError(
            f"Expected 'data' in {path} to be uint8 of shape (N, {_PIXELS}) with N > 0 (images of "
            f"32x32 in three colours), but got {dtype} of shape {shape}. Use the 32x32 files, or "
            "unpack the file again."
        )
    if labels_dtype.kind not in "iu" or labels_shape != shape[:1]:
        raise ValueError(
            f"Expected 'labels' in {path} to be {shape[0]} whole numbers, one for each image, but "
            f"got {labels_dtype} of shape {labels_shape}. {_AGAIN}"
        )
    return int(shape[0])


def _incomplete(path: Path, error: Exception) -> str:
    return (
        f"Expected {path} to be a complete .npz file with plain arrays 'data' and 'labels', but "
        f"reading it failed: {error!r}. {_AGAIN}"
    )


def find_variant(folder: Path) -> Variant:
    """The variant that has as many training images as a folder, or the official one."""
    files = [path for name in _NAMES["training"] if (path := folder / name).is_file()]
    total = sum(map(count_images, files))
    return "withdrawn" if total == COUNTS["withdrawn"]["training"] else "official"


class ImageNet32DataModule(ImageDataModule):
    r"""ImageNet at 32x32, 1000 classes: about 1.28 million images to train, 50,000 to test on.

    Labels are in 0 to 999 (the files' own less 1). The test set is the official validation file.
    ``data_dir`` holds ``train_data_batch_1.npz`` to ``train_data_batch_10.npz`` and
    ``val_data.npz``. Training images take 3.9 GB in each process that trains. There is no
    download, since the site asks for a login.

    Two versions of this data set are in use, of different images, and likelihoods on them cannot
    be compared. So ``variant`` has no default. It is checked by counting the images before any is
    read, printed by ``setup``, and belongs beside every result.

    Args:
        variant: ``"official"`` for the files of image-net.org: 1,281,167 training and 50,000 test
            images. ``"withdrawn"`` for the older set of the PixelRNN paper, no longer offered
            there: 1,281,149 and 49,999 images. It came as PNG images without labels; write them
            to the same files with any label from 1 to 1000.
        settings: Other arguments, but ``download``, of :class:`ImageDataModule`.

    Raises:
        ValueError: If an argument is outside its range, a file is broken, or the number of
            images is not that of ``variant``.
        FileNotFoundError: If a file is missing.

    References:
        Chrabaszcz et al., *A downsampled variant of ImageNet as an alternative to the CIFAR
        datasets*, 2017, arXiv:1707.08819.
        van den Oord et al., *Pixel recurrent neural networks*, ICML 2016, arXiv:1601.06759.

    Example:
        >>> data = ImageNet32DataModule("official", "data/imagenet32", pixels="uint8")
        >>> data.image_shape, data.num_classes, data.variant
        ((3, 32, 32), 1000, 'official')
    """

    title = "ImageNet 32x32"
    folder_name = "imagenet32"
    native_shape = (3, 32, 32)
    num_classes = _CLASSES

    def __init__(
        self,
        variant: Variant,
        data_dir: str | None = None,
        val_size: int = 10_000,
        **settings: Any,
    ) -> None:
        super().__init__(data_dir, val_size=val_size, download=False, **settings)
        check_choice("variant", variant, COUNTS)
        self.variant = variant

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        sizes = [f"{len(data):,} {split}" for split, data in self._datasets.items()]
        rank_zero_info(f"ImageNet 32x32, variant {self.variant!r}: {', '.join(sizes)} images")

    def check_files(self) -> None:
        for part, names in _NAMES.items():
            missing = [name for name in names if not (self.folder / name).is_file()]
            pickles = [name for name in missing if (self.folder / name).with_suffix("").is_file()]
            if missing:
                raise FileNotFoundError(
                    f"Expected {self.folder} to hold the {part} files of downsampled ImageNet, "
                    f"{names[0]} to {names[-1]}, but {', '.join(missing)} do not exist"
                    f"{', only pickles, which may run code' if pickles else ''}. Log in at "
                    "image-net.org, choose 'Download downsampled image data (32x32)' and there "
                    "the npz format of train and val, unpack both into one folder and set "
                    "`--data.data_dir` to it."
                )
            total = sum(count_images(self.folder / name) for name in names)
            fitting = [variant for variant, counts in COUNTS.items() if counts[part] == total]
            if self.variant not in fitting:
                remedy = "No known variant has that count: unpack the archives again."
                if fitting:
                    remedy = f"Set `--data.variant {fitting[0]}`, and say so beside results."
                raise ValueError(
                    f"Expected {COUNTS[self.variant][part]:,} {part} images in {self.data_dir} "
                    f"for variant={self.variant!r}, but got {total:,}. {remedy}"
                )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "training" if train else "test"
        expected = COUNTS[self.variant][part]
        images = torch.empty((expected, *self.native_shape), dtype=torch.uint8)
        labels = torch.empty(expected, dtype=torch.int64)
        start = 0
        for name in _NAMES[part]:
            path = self.folder / name
            with path.open("rb") as file:
                try:
                    with np.load(file, allow_pickle=False) as arrays:
                        data, numbers = arrays["data.npy"], arrays["labels.npy"]
                except Exception as error:  # Broken bytes may raise nearly anything.
                    raise ValueError(_incomplete(path, error)) from error
            if numbers.min() < 1 or numbers.max() > _CLASSES:
                raise ValueError(
                    f"Expected 'labels' in {path} to lie in 1 to {_CLASSES}, but got "
                    f"{numbers.min()} to {numbers.max()}. {_AGAIN}"
                )
            here = slice(start, start + len(data))
            start = here.stop
            images.numpy()[here] = data.reshape(-1, *self.native_shape)
            labels.numpy()[here] = numbers
        return images, labels - 1
