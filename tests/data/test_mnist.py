import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision

from datamodules import mnist
from datamodules.mnist import OFFICIAL, MNISTDataModule
from tests.helpers.mnist_files import accept_mnist, idx_bytes, write_mnist

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_mnist(tmp_path)
    return tmp_path


def module(folder: Path, **arguments) -> MNISTDataModule:
    return MNISTDataModule(str(folder), val_size=10, batch_size=8, **arguments)


def test_part_of_mnist_is_taken_as_it_is(folder):
    data = module(folder, image_size=14)
    data.prepare_data()
    data.setup()
    assert len(data.build("train")) == 30
    assert next(iter(data.test_dataloader()))[0].shape == (12, 1, 14, 14)


def test_files_as_long_as_the_official_ones_have_to_be_those(folder, monkeypatch):
    sums = {name: md5 for name, (_, md5) in OFFICIAL.items()}
    accept_mnist(monkeypatch, folder)
    sizes = {name: (size, sums[name]) for name, (size, _) in mnist.OFFICIAL.items()}
    monkeypatch.setattr(mnist, "OFFICIAL", sizes)
    message = rf"{TRAIN_IMAGES} to have the MD5 checksum 6bbc9ace898e44ae57da46a324031adb of MNIST"
    with pytest.raises(ValueError, match=message):
        module(folder).prepare_data()


def test_labels_past_the_last_class_raise(folder):
    labels = torch.arange(40, dtype=torch.uint8) % 11
    (folder / "MNIST" / "raw" / TRAIN_LABELS).write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match=f"labels 0 to 9 in .*{TRAIN_LABELS}, but got 10. Delete"):
        module(folder).setup("fit")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content + b"xyz",
        lambda content: b"",
        lambda content: b"\x1f\x8b\x08\x00rest",
        lambda content: b"<html>",
        lambda content: b"\x00\x00\x08\x00" + content[4:],
        lambda content: b"\x00\x00\x08\x03\x00\x00",
        lambda content: b"\x00\x00\x0d" + content[3:],
    ],
)
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS])
def test_truncated_too_long_or_foreign_files_raise(folder, name, change):
    path = folder / "MNIST" / "raw" / name
    path.write_bytes(change(path.read_bytes()))
    message = f"{name} to be an uncompressed IDX file of bytes, .* Set `--data.download true`"
    with pytest.raises(ValueError, match=message):
        module(folder).setup("fit")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (TRAIN_LABELS, torch.zeros(39, dtype=torch.uint8), "got .40, 28, 28. and 39 labels"),
        (TRAIN_IMAGES, torch.zeros(40, 32, 32, dtype=torch.uint8), "got .40, 32, 32. and 40 lab"),
        (TRAIN_LABELS, torch.zeros(40, 1, dtype=torch.uint8), "should have 1 dimension"),
        (TRAIN_IMAGES, torch.zeros(40, 784, dtype=torch.uint8), "should have 3 dimension"),
    ],
)
def test_files_that_do_not_belong_together_raise(folder, name, array, message):
    (folder / "MNIST" / "raw" / name).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=message):
        module(folder).setup("fit")


def test_empty_test_file_raises(tmp_path):
    write_mnist(tmp_path, n_test=0)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
        module(tmp_path).setup("test")


@pytest.mark.real_data
def test_real_files_as_whole_numbers(data_dir):
    folder = data_dir / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST: {folder} does not exist")

    def images(**arguments) -> torch.Tensor:
        data = MNISTDataModule(str(folder), pixels="uint8", **arguments)
        data.setup("test")
        return torch.cat([images for images, _ in data.test_dataloader()])

    files = torchvision.datasets.MNIST(str(folder), train=False)
    assert torch.equal(images(), files.data.unsqueeze(1).float())
    assert torch.equal(images(image_size=14).double(), F.avg_pool2d(images().double(), 2).round())


@pytest.mark.real_data
def test_real_files_with_one_cut_short(data_dir, tmp_path):
    raw = data_dir / "mnist" / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip(f"no MNIST: {raw} does not exist")
    copy = tmp_path / "MNIST" / "raw"
    shutil.copytree(raw, copy)
    (copy / TRAIN_LABELS).write_bytes((copy / TRAIN_LABELS).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{TRAIN_LABELS} to be an uncompressed IDX file"):
        MNISTDataModule(str(tmp_path)).setup("fit")
