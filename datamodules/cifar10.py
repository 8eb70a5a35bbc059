"""CIFAR-10 as a LightningDataModule that holds all images in memory."""

import tarfile
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules.downloads import download
from datamodules.images import ImageDataModule


class CIFAR10DataModule(ImageDataModule):
    r"""Small colour photographs, 10 classes: 50,000 to train and validate on, 10,000 to test on.

    Images have the shape ``(B, 3, H, W)``. The files, those of the Python version in
    ``cifar-10-batches-py``, are pickles: torchvision opens them once their checksums are right.
    See :class:`ImageDataModule` for the arguments.

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
        broken = [name for name in self.checksums() if not self.is_whole(name)]

        def take(archive: Path) -> dict[str, bytes]:
            wanted = {f"{CIFAR10.base_folder}/{name}": name for name in broken}
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
