"""Check which data sets are there and whole, for ``python -m steer_lightning doctor``."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torchvision.datasets.utils import calculate_md5

from datamodules.activity_recordings import N_ROWS, find_file, merge_rows, read_rows
from datamodules.image_sets import CIFAR10DataModule, MNISTDataModule, SVHNDataModule
from datamodules.imagenet32 import ImageNet32DataModule, find_variant
from datamodules.images import ImageDataModule
from datamodules.physionet_records import N_RECORDS, read_records
from steer_lightning.doctor import Finding

_DOWNLOAD = "Set `--data.download true` in a run that needs it, or `--data_dir` here."
_BY_HAND = "It is downloaded by hand, after a login at image-net.org."


def check_data(data_dir: Path) -> Iterator[Finding]:
    """Look for every data set that has files, in the folder of the name that the configs use.

    What is not there or partial is noted, and what is broken or incomplete is a fault.
    """
    for name, check in CHECKS.items():
        folder = data_dir / name
        if not folder.is_dir():
            remedy = _BY_HAND if name == "imagenet32" else _DOWNLOAD
            yield Finding(name, "note", f"no folder {folder}. {remedy}")
            continue
        try:
            sentence = check(folder)
        except (OSError, ValueError) as error:
            yield Finding(name, "fault", str(error))
        else:
            yield Finding(name, "note" if "partial" in sentence else "ok", f"{folder}: {sentence}")


def _images(data_module: Callable[[str], ImageDataModule], folder: Path) -> str:
    data = data_module(str(folder))
    data.check_files()
    expected = data.checksums()
    if expected != {name: calculate_md5(data.folder / name) for name in expected}:
        return "readable but partial, without the checksums: not comparable with published"
    return "all files, with their checksums"


def _imagenet32(folder: Path) -> str:
    variant = find_variant(folder)
    ImageNet32DataModule(variant, str(folder)).check_files()
    return f"all files, with as many images as the variant {variant!r}"


def _physionet(folder: Path) -> str:
    read_records(folder, time_bin=1.0)
    return f"{N_RECORDS} readable records and their outcomes"


def _activity(folder: Path) -> str:
    table = read_rows(find_file(folder, None))
    merge_rows(table)
    if len(table) == N_ROWS:
        return f"{N_ROWS} readable rows"
    return f"readable but partial, {len(table)} of {N_ROWS} rows: not comparable with published"


CHECKS: dict[str, Callable[[Path], str]] = {
    "mnist": partial(_images, MNISTDataModule),
    "cifar10": partial(_images, CIFAR10DataModule),
    "svhn": partial(_images, SVHNDataModule),
    "imagenet32": _imagenet32,
    "physionet2012": _physionet,
    "person_activity": _activity,
}
