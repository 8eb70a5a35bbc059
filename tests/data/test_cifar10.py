import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules import cifar10
from datamodules.cifar10 import CIFAR10DataModule
from tests.helpers.cifar_files import (
    META_NAME,
    TEST_NAME,
    accept_cifar10,
    pack_cifar10,
    write_cifar10,
)
from tests.helpers.http_server import serving
from tests.helpers.threats import threat

STAGES = ("fit", "validate", "test", "predict")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_cifar10(tmp_path)
    accept_cifar10(monkeypatch, tmp_path)
    return tmp_path


def module(folder: Path, **arguments) -> CIFAR10DataModule:
    arguments = {"val_size": 10, "batch_size": 8} | arguments
    return CIFAR10DataModule(str(folder), **arguments)


def everything(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches(folder):
    data = module(folder, horizontal_flip=True)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, 3, 32, 32), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape[1:] == data.image_shape
    assert data.num_classes == 10
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0


def test_test_set_is_the_test_file_as_torchvision_gives_it(folder):
    reference = CIFAR10(str(folder), train=False, transform=torchvision.transforms.PILToTensor())
    expected = torch.stack([image for image, _ in reference])
    for pixels, values in (("grey", expected.float()), ("unit", expected.float() / 255.0)):
        data = module(folder, pixels=pixels)
        data.setup("test")
        images, labels = everything(data.test_dataloader())
        assert torch.equal(images, values)
        assert labels.tolist() == [label for _, label in reference]


def test_training_files_are_split_with_their_labels(folder):
    data = module(folder, pixels="grey")
    data.setup("fit")
    parts = [everything(loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    numbers = [images[:, 0, 0, 0].long() for images, _ in parts]
    assert [len(part) for part in numbers] == [30, 10]
    assert torch.cat(numbers).sort().values.tolist() == list(range(40))
    for part, (_, labels) in zip(numbers, parts, strict=True):
        assert torch.equal(labels, part % 10)


@pytest.mark.parametrize("download", [False, True])
def test_complete_files_are_neither_written_nor_downloaded(folder, monkeypatch, download):
    def content() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    monkeypatch.setattr(cifar10, "download_members", lambda *_: pytest.fail("Nothing is missing."))
    before = content()
    data = module(folder, download=download)
    data.prepare_data()
    data.setup()
    assert content() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
@pytest.mark.parametrize("name", ["data_batch_3", META_NAME])
def test_download_repairs_files_in_prepare_data_only(folder, monkeypatch, damage, name):
    archive = pack_cifar10(folder)
    path = folder / CIFAR10.base_folder / name
    before, content = (
        {other: other.stat().st_mtime_ns for other in others(path)},
        path.read_bytes(),
    )
    damage(path)
    data = module(folder, download=True)
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        data.setup("fit")
    with serving({CIFAR10.filename: archive}) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
        data.prepare_data()
    assert path.read_bytes() == content
    assert {other: other.stat().st_mtime_ns for other in others(path)} == before
    data.setup("fit")


def others(path: Path) -> list[Path]:
    return sorted(other for other in path.parent.iterdir() if other != path)


@pytest.mark.parametrize("cut", [-1, 1000])
def test_a_broken_archive_leaves_what_was_there(folder, monkeypatch, cut):
    path = folder / CIFAR10.base_folder / META_NAME
    archive = pack_cifar10(folder)[:cut]
    path.write_bytes(b"old")
    message = (
        r"cifar-10-python\.tar\.gz to have the MD5 checksum .* of CIFAR-10's .*; it was not op"
    )
    with serving({CIFAR10.filename: archive}) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
        with pytest.raises(ValueError, match=message):
            module(folder, download=True).prepare_data()
    assert path.read_bytes() == b"old"
    assert len(others(path)) == 6


def test_a_file_that_the_archive_lacks_raises(folder, monkeypatch):
    path = folder / CIFAR10.base_folder / META_NAME
    path.unlink()
    archive = pack_cifar10(folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    with serving({CIFAR10.filename: archive}) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
        with pytest.raises(FileNotFoundError, match=f"{META_NAME}, but it does not exist"):
            module(folder, download=True).prepare_data()


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", TEST_NAME, META_NAME])
def test_missing_file_raises_for_every_stage(folder, name):
    (folder / CIFAR10.base_folder / name).unlink()
    message = f"{name}, but it does not exist. Set `--data.download true`, or `--data.data_dir`"
    with pytest.raises(FileNotFoundError, match=message):
        module(folder).prepare_data()
    for stage in STAGES:
        with pytest.raises(FileNotFoundError, match=message):
            module(folder).setup(stage)


@pytest.mark.parametrize("name", ["data_batch_2", TEST_NAME, META_NAME])
def test_broken_file_raises_for_every_stage(folder, name):
    path = folder / CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes()[:-1])
    message = f"{name} to have the MD5 checksum [0-9a-f]{{32}} of CIFAR-10's own file, but got "
    with pytest.raises(ValueError, match=message):
        module(folder).prepare_data()
    for stage in STAGES:
        with pytest.raises(ValueError, match=message):
            module(folder).setup(stage)


def test_no_code_is_run_even_with_the_right_checksum(folder, monkeypatch):
    marker = folder / "marker"
    (folder / CIFAR10.base_folder / TEST_NAME).write_bytes(threat(marker))
    accept_cifar10(monkeypatch, folder)
    with pytest.raises(
        ValueError, match=rf"{TEST_NAME} to be a pickle of .*, but it asks for \w+\."
    ):
        module(folder).setup("test")
    assert not marker.exists()


def test_official_checksums_are_looked_for(tmp_path):
    write_cifar10(tmp_path)  # Not accepted: torchvision's own checksums stand.
    message = "data_batch_1 to have the MD5 checksum c99cafc152244af753f735de768cd75f of CIFAR-10"
    with pytest.raises(ValueError, match=message):
        module(tmp_path).prepare_data()


def test_the_official_address():
    assert CIFAR10.url.startswith("https://")


def check_real_files(data: CIFAR10DataModule) -> None:
    """Compare with known statistics: counts of classes, mean of the training images."""
    data.prepare_data()
    data.setup()
    _, labels = everything(data.test_dataloader())
    assert labels.bincount().tolist() == [1000] * 10
    total = sum(
        float(images.double().sum())
        for loader in (data.train_dataloader(), data.val_dataloader())
        for images, _ in loader
    )
    assert total / (50_000 * 3072) == pytest.approx(0.4734, abs=5e-5)


@pytest.mark.network
@pytest.mark.slow
def test_real_download(tmp_path, request):
    if "network" not in request.config.option.markexpr:
        pytest.skip("downloads CIFAR-10; run with -m network")
    check_real_files(CIFAR10DataModule(str(tmp_path), download=True))


@pytest.mark.real_data
@pytest.mark.slow
def test_real_files(data_dir):
    folder = data_dir / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10: {folder} does not exist")
    check_real_files(CIFAR10DataModule(str(folder)))
