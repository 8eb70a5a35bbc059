"""Check which data sets are there and whole, for ``python -m steer_lightning.doctor``."""

from collections.abc import Callable, Iterator
from pathlib import Path

from datamodules.activity_recordings import N_ROWS, find_file, merge_rows, read_rows
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.imagenet32 import ImageNet32DataModule
from datamodules.images import ImageDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.physionet_records import N_RECORDS, find_records, read_records
from datamodules.svhn import SVHNDataModule
from steer_lightning.doctor import Finding, State

Check = Callable[[Path], tuple[State, str]]


def check_data(data_dir: Path) -> Iterator[Finding]:
    """Look for every data set that has files, in the folder of the name that the configs use.

    The checks are those of the datamodules, before a run begins. What is not there is noted, and
    what is broken or incomplete is a fault.

    Args:
        data_dir: Folder of the data sets.

    Yields:
        One finding for each data set.
    """
    for name, check in CHECKS.items():
        folder = data_dir / name
        if not folder.is_dir():
            yield Finding(name, "note", f"no folder {folder}. {_HOW_TO_GET.get(name, _DOWNLOAD)}")
            continue
        try:
            state, sentence = check(folder)
        except (OSError, ValueError) as error:
            yield Finding(name, "fault", str(error))
        else:
            yield Finding(name, state, f"{folder}: {sentence}")


def _images(cls: type[ImageDataModule], sentence: str) -> Check:
    def check(folder: Path) -> tuple[State, str]:
        cls(str(folder)).check_files()
        return "ok", sentence

    return check


def _imagenet32(folder: Path) -> tuple[State, str]:
    try:
        ImageNet32DataModule("official", str(folder)).check_files()
    except ValueError:
        ImageNet32DataModule("withdrawn", str(folder)).check_files()
        return "ok", "all files, with as many images as the variant 'withdrawn'"
    return "ok", "all files, with as many images as the variant 'official'"


def _physionet(folder: Path) -> tuple[State, str]:
    records, outcomes = find_records(folder)
    read_records(records, outcomes, time_bin=1.0)
    return "ok", f"{N_RECORDS} readable records and their outcomes"


def _activity(folder: Path) -> tuple[State, str]:
    path = find_file(folder, None)
    table = read_rows(path)
    merge_rows(table)
    if len(table) < N_ROWS:
        return "note", (
            f"{path.name} is readable but partial, {len(table)} of {N_ROWS} rows. Results are not "
            "comparable with published ones."
        )
    return "ok", f"{len(table)} readable rows"


CHECKS: dict[str, Check] = {
    "mnist": _images(
        MNISTDataModule, "four files, with the checksums of MNIST where they are as long"
    ),
    "cifar10": _images(CIFAR10DataModule, "all files, with their published checksums"),
    "svhn": _images(SVHNDataModule, "both files, with their published checksums"),
    "imagenet32": _imagenet32,
    "physionet2012": _physionet,
    "person_activity": _activity,
}
_DOWNLOAD = "Set `--data.download true` in a run that needs it, or `--data_dir` here."
_HOW_TO_GET = {
    "imagenet32": "It is downloaded by hand, after a login at image-net.org.",
}
