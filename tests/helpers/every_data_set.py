"""Tiny files of every data set that the configs read, which count as genuine."""

from pathlib import Path

import pytest

from tests.helpers.activity_files import write_activity
from tests.helpers.cifar_files import accept_cifar10, write_cifar10
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.imagenet_files import accept_imagenet32, write_imagenet32
from tests.helpers.mnist_files import write_mnist
from tests.helpers.physionet_files import accept_physionet, write_physionet
from tests.helpers.svhn_files import accept_svhn, write_svhn


def write_every_data_set(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write them, each to the subfolder that the configs name."""
    write_mnist(folder / "mnist")
    write_cifar10(folder / "cifar10")
    accept_cifar10(patch, folder / "cifar10")
    write_svhn(folder / "svhn")
    accept_svhn(patch, folder / "svhn")
    write_activity(folder / "person_activity")
    write_hopper(folder / "cache" / "hopper")
    without_dm_control(patch)
    write_physionet(folder / "physionet2012")
    accept_physionet(patch)
    write_imagenet32(folder / "imagenet32")
    accept_imagenet32(patch)
