"""MNIST as a LightningDataModule that holds all images in memory."""

import gzip
from pathlib import Path

from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from datamodules.downloads import download
from datamodules.images import REPLACE, ImageDataModule

# Where torchvision gets the files first.
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# Bytes of each file and its MD5 checksum, unpacked; torchvision has those of the archives alone.
OFFICIAL = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}


class MNISTDataModule(ImageDataModule):
    r"""Handwritten digits, 10 classes: 60,000 images to train and validate on, 10,000 to test on.

    Images have the shape ``(B, 1, H, W)``, by default divided by 255 and nothing else, as in the
    augmented Neural ODE setting. The folder holds ``MNIST/raw`` with the four unpacked files.
    Checksums are compared of files as long as MNIST's own: part of MNIST is taken as it is, if
    its headers fit. See :class:`ImageDataModule` for the arguments.

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681.

    Example:
        >>> data = MNISTDataModule("data/mnist", image_size=14)
        >>> data.image_shape, data.num_classes
        ((1, 14, 14), 10)
    """

    title = "MNIST"
    folder_name = "mnist"
    layout = "`MNIST/raw` with the four unpacked files"
    native_shape = (1, 28, 28)
    num_classes = 10

    @property
    def folder(self) -> Path:
        return Path(self.data_dir, "MNIST", "raw")

    def checksums(self) -> dict[str, str]:
        return {name: md5 for name, (_, md5) in OFFICIAL.items()}

    def fetch(self, name: str) -> None:
        def unpack(archive: Path) -> dict[str, bytes]:
            return {name: gzip.decompress(archive.read_bytes())}

        download(f"{URL}{name}.gz", self.folder, unpack, dict(MNIST.resources)[f"{name}.gz"])

    def check_file(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size == OFFICIAL[name][0]:
            super().check_file(name)
        self._read_file(name)

    def check_files(self) -> None:
        super().check_files()
        for train in (True, False):
            self.read(train)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        names = [name for name in OFFICIAL if name.startswith("train") == train]
        images, labels = map(self._read_file, names)
        n = len(labels)
        if n == 0 or images.shape != (n, *self.native_shape[1:]):
            raise ValueError(
                f"Expected {self.folder / names[0]} to hold N > 0 images of 28x28 and {names[1]} "
                f"as many labels, but got {tuple(images.shape)} and {n} labels. Set "
                "`--data.data_dir` to MNIST's own files, or delete both and set "
                "`--data.download true`."
            )
        if int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"Expected labels 0 to {self.num_classes - 1} in {self.folder / names[1]}, but "
                f"got {int(labels.max())}. Delete the file and set `--data.download true`, or set "
                "`--data.data_dir` to a folder with complete files."
            )
        return images.unsqueeze(1), labels

    def _read_file(self, name: str) -> Tensor:
        # One file, not torchvision's class, which reads `MNIST/processed` instead where it exists.
        path = self.folder / name
        try:
            tensor: Tensor = (read_image_file if "images" in name else read_label_file)(str(path))
        except Exception as error:  # Broken bytes may raise nearly anything.
            raise ValueError(
                f"Expected {path} to be an uncompressed IDX file of bytes, as long as its header "
                f"says, but reading it failed: {error!r}. {REPLACE}"
            ) from error
        return tensor
