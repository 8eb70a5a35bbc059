"""The image sets with published checksums: MNIST, CIFAR-10 and SVHN."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, SVHN

from datamodules import mnist, svhn
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.images import ImageDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.svhn import SVHNDataModule
from tests.helpers.cifar_files import META_NAME, pack_cifar10, write_cifar10
from tests.helpers.data_sets import DATA_SETS
from tests.helpers.http_server import serving
from tests.helpers.svhn_files import write_svhn

CLASSES = {"mnist": MNISTDataModule, "cifar10": CIFAR10DataModule, "svhn": SVHNDataModule}
STAGES = ("fit", "validate", "test", "predict")


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, tmp_path, monkeypatch) -> Path:
    DATA_SETS[name].write(monkeypatch, tmp_path)
    return tmp_path


def module(name: str, folder: Path, **arguments) -> ImageDataModule:
    return DATA_SETS[name].build(folder, folder, **arguments)


def everything(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def as_torchvision(name: str, folder: Path) -> tuple[Tensor, list[int]]:
    """Images and labels of the test set."""
    to_tensor = torchvision.transforms.PILToTensor()
    if name == "svhn":
        reference = SVHN(str(folder), "test", transform=to_tensor)
    else:
        cls = {"mnist": MNIST, "cifar10": CIFAR10}[name]
        reference = cls(str(folder), train=False, transform=to_tensor)
    return torch.stack([image for image, _ in reference]), [label for _, label in reference]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_batches(name, folder):
    data = module(name, folder, horizontal_flip=True)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, *data.native_shape), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape[1:] == data.image_shape
    assert data.num_classes == 10
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0


def test_test_set_is_the_test_file_as_torchvision_gives_it(name, folder):
    expected, numbers = as_torchvision(name, folder)
    for pixels, values in (("uint8", expected.float()), ("unit", expected.float() / 255.0)):
        data = module(name, folder, pixels=pixels)
        data.setup("test")
        images, labels = everything(data.test_dataloader())
        assert torch.equal(images, values)
        assert labels.tolist() == numbers


def test_training_files_are_split_with_their_labels(name, folder):
    data, limited = (module(name, folder, pixels="uint8", limit_train=n) for n in (None, 5))
    data.setup("fit")
    limited.setup("fit")
    parts = [everything(loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    numbers = [images[:, 0, 0, 0].long() for images, _ in parts]
    assert [len(part) for part in numbers] == [30, 10]
    assert torch.cat(numbers).sort().values.tolist() == list(range(40))
    for part, (images, labels) in zip(numbers, parts, strict=True):
        assert torch.equal(labels, part % 10)
        if name != "mnist":  # the top row, not the left column
            assert (images[:, 0, 0] == part[:, None]).all()
    assert len(everything(limited.train_dataloader())[0]) == 5
    assert torch.equal(everything(limited.val_dataloader())[0], parts[1][0])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
@pytest.mark.parametrize("place", [0, -1])
def test_download_repairs_files_in_prepare_data_only(name, folder, monkeypatch, damage, place):
    packed, path = DATA_SETS[name].pack(folder), folder / DATA_SETS[name].files[place]
    content = path.read_bytes()
    before = {file: time for file, time in times(folder).items() if file.is_file()}
    damage(path)
    data = module(name, folder, download=True)
    with pytest.raises((FileNotFoundError, ValueError), match=path.name):
        data.setup("fit")
    with serving(packed) as address:
        DATA_SETS[name].move(monkeypatch, address)
        data.prepare_data()
    assert path.read_bytes() == content
    after = {file: time for file, time in times(folder).items() if file.is_file()}
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} == {path}
    data.setup("fit")


@pytest.mark.parametrize("cut", [-1, 10])
def test_a_broken_download_leaves_what_was_there(name, folder, monkeypatch, cut):
    broken = {file: data[:cut] for file, data in DATA_SETS[name].pack(folder).items()}
    path, before = folder / DATA_SETS[name].files[-1], list(times(folder))
    path.write_bytes(b"old")
    with serving(broken) as address:
        DATA_SETS[name].move(monkeypatch, address)
        with pytest.raises(ValueError, match=r"MD5 hash of downloaded file .* does not match"):
            module(name, folder, download=True).prepare_data()
    assert path.read_bytes() == b"old"
    assert list(times(folder)) == before


def test_a_file_that_the_archive_lacks_raises(tmp_path, monkeypatch):
    DATA_SETS["cifar10"].write(monkeypatch, tmp_path)
    (tmp_path / CIFAR10.base_folder / META_NAME).unlink()
    archive = pack_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    with serving({CIFAR10.filename: archive}) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
        with pytest.raises(FileNotFoundError, match=f"{META_NAME}, but it does not exist"):
            module("cifar10", tmp_path, download=True).prepare_data()


def test_a_broken_file_raises_for_every_stage_and_a_missing_one_says_where(name, folder):
    path, title = folder / DATA_SETS[name].files[-1], CLASSES[name].title
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = f"{path.name} to have the MD5 checksum [0-9a-f]{{32}} of {title}'s own file, but got"
    with pytest.raises(ValueError, match=message):
        module(name, folder).prepare_data()
    for stage in STAGES:
        with pytest.raises(ValueError, match=message):
            module(name, folder).setup(stage)
    path.unlink()
    message = (
        f"{title} file .*{path.name}, but it does not exist. Set `--data.download true`, or "
        f"`--data.data_dir` to the folder that holds {CLASSES[name].layout}"
    )
    with pytest.raises(FileNotFoundError, match=message):
        module(name, folder).prepare_data()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("cifar10", write_cifar10, "data_batch_1 .* checksum c99cafc152244af753f735de768cd75f of"),
        ("svhn", write_svhn, "train_32x32.mat .* checksum e26dedcc434d2e4c54c9b2d4a06d8373 of"),
    ],
)
def test_official_checksums_are_looked_for(tmp_path, name, write, message):
    write(tmp_path)  # Not accepted: torchvision's own checksums stand.
    with pytest.raises(ValueError, match=message):
        module(name, tmp_path).prepare_data()


def test_the_official_addresses():
    assert CIFAR10.url.startswith("https://")
    urls = [url for url, *_ in SVHN.split_list.values()]
    assert all(url.startswith(svhn.URL.replace("https", "http")) for url in urls)
    assert svhn.URL.startswith("https://")
    assert mnist.URL in MNIST.mirrors
    assert mnist.URL.startswith("https://")


def test_folders_of_the_data_sets(name):
    assert CLASSES[name]().data_dir == f"data/{name}"


# Test labels of each kind, training images, and the mean of their values in [0, 1].
KNOWN = {
    "mnist": ([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], 60_000, 0.1307),
    "cifar10": ([1000] * 10, 50_000, 0.4734),
    "svhn": ([1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595], 73_257, None),
}


def check_real_files(name: str, folder: Path, **arguments) -> None:
    data = CLASSES[name](str(folder), **arguments)
    data.prepare_data()
    data.setup()
    counts, n_train, mean = KNOWN[name]
    assert everything(data.test_dataloader())[1].bincount().tolist() == counts
    total = n = 0
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for images, _ in loader:
            total, n = total + float(images.double().mean((1, 2, 3)).sum()), n + len(images)
    assert n == n_train
    assert mean is None or total / n == pytest.approx(mean, abs=5e-5)


@pytest.mark.network
@pytest.mark.slow
def test_real_download(name, tmp_path, request):
    if "network" not in request.config.option.markexpr:
        pytest.skip(f"downloads {name}; run with -m network")
    check_real_files(name, tmp_path, download=True)


@pytest.mark.real_data
@pytest.mark.slow
def test_real_files(name, data_dir):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name}: {data_dir / name} does not exist")
    check_real_files(name, data_dir / name)
