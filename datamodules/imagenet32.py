"""Downsampled ImageNet, 32x32, as a LightningDataModule that holds all images in memory."""

from collections.abc import Sized
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.images import ImageDataModule, Pixels
from datamodules.safe_pickle import load_pickle

Variant = Literal["official", "withdrawn"]

# Images in the files of each variant.
COUNTS: dict[str, dict[str, int]] = {
    "official": {"training": 1_281_167, "test": 50_000},
    "withdrawn": {"training": 1_281_149, "test": 49_999},
}

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_CLASSES = 1000
_NAMES = {
    "training": [f"train_data_batch_{number}" for number in range(1, 11)],
    "test": ["val_data"],
}
_AGAIN = "Unpack or download the file again."


def find_files(folder: Path, part: str) -> list[Path]:
    r"""Choose the files of the training or test images: ``.npz``, or else pickles.

    Args:
        folder: Where to look.
        part: ``"training"`` or ``"test"``.

    Returns:
        Paths in the order of their numbers, all in one format.

    Raises:
        FileNotFoundError: If neither format is complete.
    """
    names = _NAMES[part]
    pickles = [folder / name for name in names]
    archives = [folder / f"{name}.npz" for name in names]
    for paths in (archives, pickles):
        if all(path.is_file() for path in paths):
            return paths
    # Of the two incomplete formats, name what lacks in the one that lacks less.
    lacks = [[path.name for path in paths if not path.is_file()] for paths in (pickles, archives)]
    missing = min(lacks, key=len)
    raise FileNotFoundError(
        f"Expected {folder} to hold the {part} files of downsampled ImageNet, {names[0]} to "
        f"{names[-1]} (pickles, or all with the ending .npz), but {', '.join(missing)} "
        f"{'does' if len(missing) == 1 else 'do'} not exist. Log in at image-net.org, choose "
        "'Download downsampled image data (32x32)', unpack train and val into one folder and set "
        "`--data.data_dir` to it."
    )


def read_batch(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""Read one file of downsampled ImageNet; no code in it is run.

    Args:
        path: A ``.npz`` file, or a pickle with any other name.

    Returns:
        Images, shape ``(N, 3072)``, uint8, channels first, and labels, shape ``(N,)``, integers
        in 1 to 1000.

    Raises:
        ValueError: If the file is broken or holds something else.
    """
    content = _load_npz(path) if path.suffix == ".npz" else load_pickle(path)
    if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"Expected {path} to hold a dictionary with 'data' and 'labels', but got {got}. "
            f"{_AGAIN}"
        )
    data, labels = content["data"], content["labels"]
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != _PIXELS
        or len(data) == 0
    ):
        raise ValueError(
            f"Expected 'data' in {path} to be uint8 of shape (N, {_PIXELS}) with N > 0 (images of "
            f"32x32 in three colours), but got {_describe(data)}. Use the 32x32 files, or unpack "
            "the file again."
        )
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array(labels)
    if (
        not isinstance(labels, np.ndarray)
        or labels.dtype.kind not in "iu"
        or labels.shape != (len(data),)
    ):
        raise ValueError(
            f"Expected 'labels' in {path} to be {len(data)} whole numbers, one for each image, "
            f"but got {_describe(labels)}. {_AGAIN}"
        )
    if labels.min() < 1 or labels.max() > _CLASSES:
        raise ValueError(
            f"Expected 'labels' in {path} to lie in 1 to {_CLASSES}, but got {labels.min()} to "
            f"{labels.max()}. {_AGAIN}"
        )
    return data, labels


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays}
        except Exception as error:  # Broken bytes may raise nearly anything.
            raise ValueError(
                f"Expected {path} to be a complete .npz file of plain arrays, but reading it "
                f"failed: {error!r}. {_AGAIN}"
            ) from error


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    length = f" of length {len(value)}" if isinstance(value, list) else ""
    return f"{type(value).__name__}{length}"


class ImageNet32DataModule(ImageDataModule):
    r"""ImageNet at 32x32, 1000 classes: about 1.28 million images to train, 50,000 to test on.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, 3, H, W)``, float32, and labels,
    shape ``(B,)``, int64 in 0 to 999 (the files' own less 1). The test set is the official
    validation file ``val_data``. The validation set is split from the training files, keyed by
    ``seed``, and shares nothing with the test set. Predict uses the test set.

    Two versions of this data set are in use, of different images, and likelihoods on them cannot
    be compared. So ``variant`` has no default: say which one the files are. It is checked by
    counting the images, printed by ``setup``, and belongs beside every result.

    Training images take 3.9 GB in each process that trains. There is no download, since the site
    asks for a login. Files are read without running code that a pickle may hold.

    Args:
        variant: ``"official"`` for the files of image-net.org: 1,281,167 training and 50,000 test
            images. ``"withdrawn"`` for the older set of the PixelRNN paper, no longer offered
            there: 1,281,149 and 49,999 images. It came as PNG images without labels; write them
            to the same files with any label.
        data_dir: Folder that holds ``train_data_batch_1`` to ``train_data_batch_10`` and
            ``val_data``, as pickles or as ``.npz`` files; ``.npz`` is taken where both are there.
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
        num_workers: Loader processes.
        seed: Key of the split, the order and the mirror images.

    Raises:
        ValueError: If an argument is outside its range, a file is broken, or the number of
            images is not that of ``variant``.
        FileNotFoundError: If a file is missing.

    References:
        Chrabaszcz et al., *A downsampled variant of ImageNet as an alternative to the CIFAR
        datasets*, 2017, arXiv:1707.08819.
        van den Oord et al., *Pixel recurrent neural networks*, ICML 2016, arXiv:1601.06759.

    Example:
        >>> data = ImageNet32DataModule("official", "data/imagenet32", pixels="grey")
        >>> data.image_shape, data.num_classes, data.variant
        ((3, 32, 32), 1000, 'official')
    """

    native_shape = _SHAPE
    num_classes = _CLASSES

    def __init__(
        self,
        variant: Variant,
        data_dir: str = "data/imagenet32",
        batch_size: int = 256,
        eval_batch_size: int | None = 1000,
        val_size: int = 10_000,
        limit_train: int | None = None,
        image_size: int = 32,
        pixels: Pixels = "unit",
        horizontal_flip: bool = False,
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
        if variant not in COUNTS:
            raise ValueError(
                f"Expected `variant` to be one of {', '.join(map(repr, COUNTS))}, but got "
                f"{variant!r}. Files of image-net.org are 'official'."
            )
        self.variant = variant

    def setup(self, stage: str | None = None) -> None:
        """Build the splits that a stage needs, and print the variant and their sizes.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or ``None`` for all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is broken, or the number of images is not that of ``variant``.
        """
        super().setup(stage)
        sizes = [f"{len(cast(Sized, data)):,} {split}" for split, data in self._datasets.items()]
        rank_zero_info(f"ImageNet 32x32, variant {self.variant!r}: {', '.join(sizes)} images")

    def check_files(self) -> None:
        for part in _NAMES:
            find_files(Path(self.data_dir), part)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "training" if train else "test"
        expected = COUNTS[self.variant][part]
        images = torch.empty((expected, *_SHAPE), dtype=torch.uint8)
        labels = torch.empty(expected, dtype=torch.int64)
        total = 0
        for path in find_files(Path(self.data_dir), part):
            data, numbers = read_batch(path)
            here = slice(total, total + len(data))
            total = here.stop
            if total <= expected:  # Of too many images, the rest is only counted.
                images.numpy()[here] = data.reshape(-1, *_SHAPE)
                labels.numpy()[here] = numbers
        if total != expected:
            raise ValueError(self._wrong_count(part, total))
        labels -= 1
        return images, labels

    def _wrong_count(self, part: str, total: int) -> str:
        others = [name for name, counts in COUNTS.items() if counts[part] == total]
        if others:
            remedy = (
                f"That is the count of the variant {others[0]!r}: set `--data.variant "
                f"{others[0]}`, and report results as those of that variant."
            )
        else:
            remedy = (
                "No known variant has that count: a file may be doubled, replaced or incomplete. "
                "Unpack the archives again."
            )
        return (
            f"Expected {COUNTS[self.variant][part]:,} {part} images in {self.data_dir} for "
            f"variant={self.variant!r}, but got {total:,}. {remedy}"
        )
