"""MNIST, CIFAR-10 and SVHN as LightningDataModules; torchvision reads their files."""

import gzip
import tarfile
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, SVHN
from torchvision.datasets.mnist import read_image_file, read_label_file

from datamodules.files import download, whole
from datamodules.images import REPLACE, ImageDataModule

# Torchvision's addresses, over https.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SVHN_URL = "https://ufldl.stanford.edu/housenumbers/"

# Bytes of MNIST's files and their MD5, unpacked; torchvision has the archives' MD5 alone.
OFFICIAL = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}


class MNISTDataModule(ImageDataModule):
    r"""Handwritten digits, 10 classes: 60,000 images to train and validate on, 10,000 to test on.

    The folder holds ``MNIST/raw`` with the four unpacked files. Checksums are compared of files as
    long as MNIST's own: part of MNIST is taken as it is, if its headers fit. See
    :class:`ImageDataModule` for the arguments.

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

        download(f"{MNIST_URL}{name}.gz", self.folder, unpack, dict(MNIST.resources)[f"{name}.gz"])

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
        if n == 0 or images.shape != (n, *self.native_shape[1:]) or int(labels.max()) > 9:
            raise ValueError(
                f"Expected {self.folder / names[0]} to hold N > 0 images of 28x28 and {names[1]} "
                f"as many labels from 0 to 9, but got {tuple(images.shape)} and {n} labels up to "
                f"{int(labels.max()) if n else None}. Delete both. {REPLACE}"
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


class CIFAR10DataModule(ImageDataModule):
    r"""Small colour photographs, 10 classes: 50,000 to train and validate on, 10,000 to test on.

    The files, those of the Python version, are pickles: torchvision opens them once their
    checksums are right. See :class:`ImageDataModule` for the arguments.

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.

    Example:
        >>> data = CIFAR10DataModule("data/cifar10", pixels="uint8")
        >>> data.image_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    title = "CIFAR-10"
    folder_name = "cifar10"
    layout = f"`{CIFAR10.base_folder}` with the unpacked files"
    native_shape = (3, 32, 32)
    num_classes = 10

    @property
    def folder(self) -> Path:
        return Path(self.data_dir, CIFAR10.base_folder)

    def checksums(self) -> dict[str, str]:
        files = [*CIFAR10.train_list, *CIFAR10.test_list]
        return dict([*files, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])

    def fetch(self, name: str) -> None:
        """Download the archive, and take out of it all files that are missing or broken."""
        wanted = {f"{CIFAR10.base_folder}/{name}": name for name in self.broken()}

        def take(archive: Path) -> dict[str, bytes]:
            with tarfile.open(archive) as members:
                return {
                    wanted[member.name]: file.read()
                    for member in members
                    if member.name in wanted and (file := members.extractfile(member))
                }

        download(CIFAR10.url, self.folder, take, CIFAR10.tgz_md5)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = CIFAR10(self.data_dir, train)
        images = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(files.targets)


class SVHNDataModule(ImageDataModule):
    r"""Digits of house numbers, 10 classes: 73,257 to train and validate on, 26,032 to test on.

    Labels are the digits themselves (the files have 10 for digit 0). The file of extra images is
    not used. See :class:`ImageDataModule` for the arguments.

    References:
        Netzer et al., *Reading digits in natural images with unsupervised feature learning*, NIPS
        workshop, 2011.

    Example:
        >>> data = SVHNDataModule("data/svhn")
        >>> data.image_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    title = "SVHN"
    folder_name = "svhn"
    layout = "`train_32x32.mat` and `test_32x32.mat`"
    native_shape = (3, 32, 32)
    num_classes = 10

    def checksums(self) -> dict[str, str]:
        files = [SVHN.split_list[split] for split in ("train", "test")]
        return {name: md5 for _, name, md5 in files}

    def fetch(self, name: str) -> None:
        download(f"{SVHN_URL}{name}", self.folder, whole, self.checksums()[name])

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = SVHN(self.data_dir, "train" if train else "test")
        return torch.from_numpy(files.data).contiguous(), torch.from_numpy(files.labels)
