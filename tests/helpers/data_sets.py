"""Every data set that is read from files, on tiny ones, for tests of what can befall files."""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules import activity, activity_recordings, image_sets, intact, physionet
from datamodules.activity import HumanActivityDataModule
from datamodules.activity_recordings import FILE_NAME
from datamodules.base import TensorDataModule
from datamodules.image_sets import CIFAR10DataModule, MNISTDataModule, SVHNDataModule
from datamodules.imagenet32 import ImageNet32DataModule
from datamodules.physionet import PhysioNetDataModule
from datamodules.physionet_records import ARCHIVE_NAME, OUTCOMES_NAME
from tests.helpers.activity_files import tiny_rows, write_activity
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.image_files import (
    CIFAR_META,
    CIFAR_TEST,
    CIFAR_TRAIN,
    SVHN_NAMES,
    accept_cifar10,
    accept_imagenet32,
    accept_svhn,
    pack_cifar10,
    write_cifar10,
    write_imagenet32,
    write_svhn,
)
from tests.helpers.mnist_files import accept_mnist, pack_mnist, write_mnist
from tests.helpers.physionet_files import FIRST_ID, accept_physionet, write_physionet


@dataclass(frozen=True)
class DataSet:
    """One data set in one format.

    ``write`` makes complete files that count as genuine in a folder; ``files`` are their names;
    ``build`` makes the datamodule of a folder; ``pack`` gives what the server has, by name, and
    ``url`` is where the server's address stands: an owner, its attribute, and what follows.
    """

    files: tuple[str, ...]
    write: Callable[[pytest.MonkeyPatch, Path], None]
    build: Callable[..., TensorDataModule]
    pack: Callable[[Path], Mapping[str, bytes]] | None = None
    url: tuple[Any, str, str] | None = None

    def move(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        """Download from another address."""
        owner, attribute, name = self.url
        monkeypatch.setattr(owner, attribute, address + name)


def _genuine(
    write: Callable[[Path], None], accept: Callable[..., None]
) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """Write files and take their checksums for the published ones."""

    def both(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        write(folder)
        accept(monkeypatch, folder)

    return both


def _write_physionet(form: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    accept_physionet(monkeypatch)
    write_physionet(folder, form=form)


def _write_activity(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for module in (activity, activity_recordings, intact):
        monkeypatch.setattr(module, "N_ROWS", len(tiny_rows()))
    write_activity(folder)


def _images(cls: Callable[..., TensorDataModule], folder: Path, **arguments) -> TensorDataModule:
    return cls(data_dir=str(folder), **({"val_size": 10, "batch_size": 8} | arguments))


def _physionet(folder: Path, **arguments) -> TensorDataModule:
    return PhysioNetDataModule(str(folder), **({"val_size": 8, "batch_size": 8} | arguments))


def _activity(folder: Path, **arguments) -> TensorDataModule:
    sizes = {"window": 20, "stride": 10, "val_size": 4, "batch_size": 8}
    return HumanActivityDataModule(str(folder), **(sizes | arguments))


def _as_they_are(names: Iterable[str], folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def _pack_activity(folder: Path) -> dict[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / FILE_NAME, FILE_NAME)
    return {"a.zip": buffer.getvalue()}


# By the names of their folders in the configs.
DATA_SETS = {
    "mnist": DataSet(
        files=tuple(f"MNIST/raw/{name}" for name in image_sets.OFFICIAL),
        write=_genuine(write_mnist, accept_mnist),
        build=partial(_images, MNISTDataModule),
        pack=pack_mnist,
        url=(image_sets, "MNIST_URL", ""),
    ),
    "cifar10": DataSet(
        files=tuple(
            f"{CIFAR10.base_folder}/{name}" for name in (*CIFAR_TRAIN, CIFAR_TEST, CIFAR_META)
        ),
        write=_genuine(write_cifar10, accept_cifar10),
        build=partial(_images, CIFAR10DataModule),
        pack=lambda folder: {CIFAR10.filename: pack_cifar10(folder)},
        url=(CIFAR10, "url", CIFAR10.filename),
    ),
    "svhn": DataSet(
        files=tuple(SVHN_NAMES.values()),
        write=_genuine(write_svhn, accept_svhn),
        build=partial(_images, SVHNDataModule),
        pack=partial(_as_they_are, SVHN_NAMES.values()),
        url=(image_sets, "SVHN_URL", ""),
    ),
    "imagenet32": DataSet(
        files=("train_data_batch_1.npz", "train_data_batch_10.npz", "val_data.npz"),
        write=_genuine(write_imagenet32, lambda patch, _: accept_imagenet32(patch)),
        build=partial(_images, partial(ImageNet32DataModule, "official")),
    ),
    "physionet2012": DataSet(
        files=(ARCHIVE_NAME, OUTCOMES_NAME),
        write=partial(_write_physionet, "archive"),
        build=_physionet,
        pack=partial(_as_they_are, (ARCHIVE_NAME, OUTCOMES_NAME)),
        url=(physionet, "URL", ""),
    ),
    "person_activity": DataSet(
        files=(FILE_NAME,),
        write=_write_activity,
        build=_activity,
        pack=_pack_activity,
        url=(activity_recordings, "URL", "a.zip"),
    ),
}
FOLDERS = tuple(DATA_SETS)
DATA_SETS["physionet_unpacked"] = DataSet(
    files=(f"set-a/{FIRST_ID}.txt", OUTCOMES_NAME),
    write=partial(_write_physionet, "folder"),
    build=_physionet,
)
DOWNLOADED = [name for name, data_set in DATA_SETS.items() if data_set.pack]


def write_every_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write all files that the configs read, each to the subfolder that they name."""
    for name in FOLDERS:
        DATA_SETS[name].write(monkeypatch, folder / name)
    write_hopper(folder / "cache" / "hopper")
    without_dm_control(monkeypatch)


def all_batches(data: TensorDataModule) -> list[Tensor]:
    """Prepare a datamodule and read every tensor of every split."""
    data.prepare_data()
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [tensor for loader in loaders for batch in loader for tensor in batch]


def everything(loader) -> tuple[Tensor, ...]:
    """All batches of a loader as one."""
    return tuple(map(torch.cat, zip(*loader, strict=True)))


def same(first: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Say whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
