"""Street View House Numbers as a LightningDataModule that holds all images in memory."""

import torch
from torch import Tensor
from torchvision.datasets import SVHN

from datamodules.downloads import download, whole
from datamodules.images import ImageDataModule

# Torchvision's address, over https.
URL = "https://ufldl.stanford.edu/housenumbers/"


class SVHNDataModule(ImageDataModule):
    r"""Digits of house numbers, 10 classes: 73,257 to train and validate on, 26,032 to test on.

    Images have the shape ``(B, 3, H, W)``, by default divided by 255 and nothing else, as in the
    augmented Neural ODE setting. Labels are the digits themselves (the files have 10 for digit
    0). The file of extra images is not used. See :class:`ImageDataModule` for the arguments.

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
        download(f"{URL}{name}", self.folder, whole, self.checksums()[name])

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        files = SVHN(self.data_dir, "train" if train else "test")
        return torch.from_numpy(files.data).contiguous(), torch.from_numpy(files.labels)
