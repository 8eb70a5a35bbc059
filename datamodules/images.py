"""Base of all image sets: checked files, bytes in memory, a seeded split, mirror images."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchvision.datasets.utils import calculate_md5

from datamodules.base import Split, TensorData, TensorDataModule, check_at_least, seeded_generator
from steer_lightning.utils.checks import check_choice

Pixels = Literal["unit", "uint8"]
REPLACE = (
    "Set `--data.download true` to replace it, or set `--data.data_dir` to a folder with complete "
    "files."
)


class EpochSampler(DistributedSampler[Any]):
    """The order of a ``DistributedSampler``, with the epoch beside each index.

    So the epoch of a sample does not depend on when a worker started or how far ahead it reads.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(repeat(self.epoch), super().__iter__(), strict=False)


class ImageData(TensorData[tuple[Tensor, Tensor]]):
    r"""Chosen images of a file, kept as bytes and turned into floats batch by batch.

    Use :class:`EpochSampler` where images are mirrored; plain indices are those of epoch 0.

    Args:
        images: All images of the file, shape ``(N, C, H, W)``, uint8.
        labels: Their classes, shape ``(N,)``, int64.
        chosen: Which images belong to this split, see :class:`~datamodules.base.TensorData`.
        pixels: Range of the values, see :class:`ImageDataModule`.
        window: Side of the square windows that are averaged, a divisor of ``H`` and ``W``.
        flip_seed: Mirror each image left to right with probability 1/2, keyed by this seed, the
            epoch and the image's number in the file; ``None`` mirrors none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        chosen: Tensor | None = None,
        pixels: Pixels = "unit",
        window: int = 1,
        flip_seed: int | None = None,
    ) -> None:
        super().__init__((images, labels), chosen)
        self.pixels = pixels
        self.window = window
        self.flip_seed = flip_seed
        self._mirrored: tuple[int, Tensor] | None = None

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pairs = [index if isinstance(index, tuple) else (0, index) for index in indices]
        return self.select([index for _, index in pairs], epoch=pairs[0][0])

    def select(self, index: int | list[int], epoch: int = 0) -> tuple[Tensor, Tensor]:
        images, labels = super().select(index)
        if self.flip_seed is not None:
            mirrored = self.mirrored(epoch)[self.chosen[index]]
            images = torch.where(mirrored[..., None, None, None], images.flip(-1), images)
        x = images.float()
        if self.pixels == "unit":
            x = x / 255.0
        if self.window > 1:
            x = F.avg_pool2d(x, self.window)
            if self.pixels == "uint8":
                x = x.round()
        return x, labels

    def mirrored(self, epoch: int) -> Tensor:
        """Flag the images of the file that an epoch mirrors, shape ``(N,)``, bool."""
        if self._mirrored is None or self._mirrored[0] != epoch:
            assert self.flip_seed is not None
            generator = seeded_generator(self.flip_seed, f"mirror/{epoch}")
            flags = torch.rand(len(self.tensors[0]), generator=generator) < 0.5
            self._mirrored = (epoch, flags)
        return self._mirrored[1]


class ImageDataModule(TensorDataModule):
    r"""Base of image sets that fit in memory: a subclass names, checks, fetches and reads files.

    A batch is a tuple ``(images, labels)``: images, shape ``(B, C, H, W)``, float32, and labels,
    shape ``(B,)``, int64. Files are kept as bytes, in one copy for training and validation. The
    folder is only written to when ``download`` is true and a file is missing or broken; the MD5 of
    every file is compared with the published one before any is opened.

    Args:
        data_dir: Folder of the files, in torchvision's layout; ``None`` means the folder of the
            data set's name in ``data``.
        val_size: Images split off the training files for validation. With 0 none is, as
            published: the test set is validated on, and a checkpoint that is chosen by validation
            is then chosen by the test.
        limit_train: Keep this many training images after the split; ``None`` keeps all.
        image_size: Height and width, a divisor of the files' own; ``None`` means the files' own.
            Smaller images are averages over windows.
        pixels: ``"unit"`` gives values in [0, 1], bytes divided by 255. ``"uint8"`` gives whole
            numbers from 0 to 255, for flows that add noise to them; averages over windows are
            then rounded to whole numbers (halves to the even one), and bits per dimension are
            those of the rounded small images.
        horizontal_flip: Mirror each training image left to right with probability 1/2, anew in
            each epoch, keyed by ``seed``, the epoch and the image's number. Not for digits.
        download: Download missing or broken files.

    Attributes:
        title: Name of the data set, for messages.
        folder_name: Name of the folder that ``data_dir`` usually is.
        layout: Names of what ``data_dir`` has to hold, for messages.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails or a file cannot be written.

    Example:
        >>> class Noise(ImageDataModule):
        ...     native_shape, num_classes = (3, 8, 8), 2
        ...
        ...     def read(self, train):
        ...         images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
        ...         return images, torch.arange(20) % 2
        >>> data = Noise("no folder", batch_size=4, val_size=5, image_size=4, pixels="uint8")
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, bool((images == images.round()).all())
        (torch.Size([4, 3, 4, 4]), True)
    """

    title: ClassVar[str]
    folder_name: ClassVar[str]
    layout: ClassVar[str]
    native_shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    sampler_class = EpochSampler

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 256,
        eval_batch_size: int | None = 1000,
        val_size: int = 5000,
        limit_train: int | None = None,
        image_size: int | None = None,
        pixels: Pixels = "unit",
        horizontal_flip: bool = False,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_at_least(0, val_size=val_size)
        check_at_least(1, limit_train=limit_train)
        side = self.native_shape[-1]
        image_size = side if image_size is None else image_size
        if image_size < 1 or side % image_size:
            divisors = [str(size) for size in range(side, 0, -1) if side % size == 0]
            raise ValueError(
                f"Expected `image_size` to be a divisor of {side}, but got {image_size}. "
                f"Choose one of {', '.join(divisors)}."
            )
        check_choice("pixels", pixels, ("unit", "uint8"))
        self.data_dir = f"data/{self.folder_name}" if data_dir is None else data_dir
        self.val_size = val_size
        self.limit_train = limit_train
        self.image_size = image_size
        self.pixels: Pixels = pixels
        self.horizontal_flip = horizontal_flip
        self.download = download
        self._files: dict[bool, tuple[Tensor, Tensor]] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image as it is given, ``(C, H, W)``."""
        return (self.native_shape[0], self.image_size, self.image_size)

    @property
    def folder(self) -> Path:
        """Folder that holds the files themselves."""
        return Path(self.data_dir)

    def checksums(self) -> dict[str, str]:
        """Published MD5 checksum of each file, by name; none here."""
        return {}

    def fetch(self, name: str) -> None:
        """Download a file of :meth:`checksums`; it appears whole and checked, or not at all."""

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training files, or else the test files, after :meth:`check_files`.

        Returns:
            Images, shape ``(N, *native_shape)``, uint8, and labels, shape ``(N,)``, int64.
        """

    def check_files(self) -> None:
        """Raise ``FileNotFoundError`` or ``ValueError`` unless all files are there and whole."""
        for name in self.checksums():
            self.check_file(name)

    def check_file(self, name: str) -> None:
        """Raise unless a file of :meth:`checksums` is there and whole."""
        path, expected = self.folder / name, self.checksums()[name]
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected the {self.title} file {path}, but it does not exist. Set "
                f"`--data.download true`, or `--data.data_dir` to the folder that holds "
                f"{self.layout}."
            )
        md5 = calculate_md5(path)
        if md5 != expected:
            raise ValueError(
                f"Expected {path} to have the MD5 checksum {expected} of {self.title}'s own file, "
                f"but got {md5}; it was not opened. {REPLACE}"
            )

    def broken(self) -> Iterator[str]:
        """Name the files of :meth:`checksums` that are missing or broken."""
        for name in self.checksums():
            try:
                self.check_file(name)
            except (FileNotFoundError, ValueError):
                yield name

    def prepare_data(self) -> None:
        if self.download:
            for name in self.broken():
                self.fetch(name)
        self.check_files()  # Before a run makes its folders.

    def build(self, split: Split) -> ImageData:
        train = split == "train" or (split == "val" and self.val_size > 0)
        if train not in self._files:
            self.check_files()
            self._files[train] = self.read(train)
        images, labels = self._files[train]
        window = self.native_shape[-1] // self.image_size
        if not train:
            return ImageData(images, labels, None, self.pixels, window)
        total = len(images)
        if self.val_size >= total:
            raise ValueError(
                f"Expected `val_size` to be smaller than the {total} training images in "
                f"{self.data_dir}, but got {self.val_size}. Lower `val_size`."
            )
        order = torch.randperm(total, generator=seeded_generator(self.seed, "split"))
        if split == "val":
            return ImageData(images, labels, order[: self.val_size], self.pixels, window)
        chosen = order[self.val_size :][: self.limit_train]
        flip_seed = self.seed if self.horizontal_flip else None
        return ImageData(images, labels, chosen, self.pixels, window, flip_seed)
