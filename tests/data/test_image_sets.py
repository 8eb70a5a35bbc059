"""The image sets with published checksums: MNIST, CIFAR-10 and SVHN."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, SVHN

from datamodules import image_sets
from datamodules.image_sets import OFFICIAL, CIFAR10DataModule, MNISTDataModule, SVHNDataModule
from datamodules.images import ImageDataModule
from tests.helpers.data_sets import DATA_SETS, everything
from tests.helpers.http_server import serving
from tests.helpers.image_files import CIFAR_META, pack_cifar10, write_cifar10, write_svhn
from tests.helpers.mnist_files import accept_mnist, idx_bytes, write_mnist

CLASSES = {"mnist": MNISTDataModule, "cifar10": CIFAR10DataModule, "svhn": SVHNDataModule}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NO_IDX = f"{IMAGES} to be an uncompressed IDX file of bytes, .* Set `--data.d"


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, tmp_path, monkeypatch) -> Path:
    DATA_SETS[name].write(monkeypatch, tmp_path)
    return tmp_path


def module(name: str, folder: Path, **arguments) -> ImageDataModule:
    return DATA_SETS[name].build(folder, **arguments)


def test_test_set_is_the_test_file_as_torchvision_gives_it(name, folder):
    cls = {"mnist": MNIST, "cifar10": CIFAR10, "svhn": SVHN}[name]
    part = "test" if name == "svhn" else False
    reference = cls(str(folder), part, transform=torchvision.transforms.PILToTensor())
    expected = torch.stack([image for image, _ in reference])
    numbers = [label for _, label in reference]
    for pixels, values in (("uint8", expected.float()), ("unit", expected.float() / 255.0)):
        data = module(name, folder, pixels=pixels)
        data.setup("test")
        assert (data.image_shape, data.num_classes) == (expected.shape[1:], 10)
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


def test_a_file_that_the_archive_lacks_raises(tmp_path, monkeypatch):
    DATA_SETS["cifar10"].write(monkeypatch, tmp_path)
    (tmp_path / CIFAR10.base_folder / CIFAR_META).unlink()
    archive = pack_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    with serving({CIFAR10.filename: archive}) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
        with pytest.raises(FileNotFoundError, match=f"{CIFAR_META}, but it does not exist"):
            module("cifar10", tmp_path, download=True).prepare_data()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("cifar10", write_cifar10, "data_batch_1 .* checksum c99cafc152244af753f735de768cd75f of"),
        ("svhn", write_svhn, "train_32x32.mat .* checksum e26dedcc434d2e4c54c9b2d4a06d8373 of"),
        ("mnist", write_mnist, f"{IMAGES} .* checksum 6bbc9ace898e44ae57da46a324031adb of MNIST"),
    ],
)
def test_the_official_checksums_and_addresses(tmp_path, monkeypatch, name, write, message):
    write(tmp_path)
    if name == "mnist":  # Files as long as the official ones have to be those.
        accept_mnist(monkeypatch, tmp_path)
        own = {file: (size, OFFICIAL[file][1]) for file, (size, _) in image_sets.OFFICIAL.items()}
        monkeypatch.setattr(image_sets, "OFFICIAL", own)
    with pytest.raises(ValueError, match=message):
        module(name, tmp_path).prepare_data()
    assert CIFAR10.url.startswith("https://")
    urls = [url for url, *_ in SVHN.split_list.values()]
    assert all(url.startswith(image_sets.SVHN_URL.replace("https", "http")) for url in urls)
    assert image_sets.MNIST_URL in MNIST.mirrors
    for url in (image_sets.MNIST_URL, image_sets.SVHN_URL):
        assert url.startswith("https://")


def test_part_of_mnist_is_taken_as_it_is(tmp_path):
    write_mnist(tmp_path)
    data = module("mnist", tmp_path, image_size=14)
    data.prepare_data()
    data.setup()
    assert len(data.build("train")) == 30
    assert next(iter(data.test_dataloader()))[0].shape == (12, 1, 14, 14)


def uint8(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, idx_bytes(uint8(40, 28, 28)) + b"xyz", NO_IDX),
        (IMAGES, b"\x1f\x8b\x08\x00rest", NO_IDX),
        (IMAGES, b"\x00\x00\x08\x00" + bytes(100), NO_IDX),
        (IMAGES, b"\x00\x00\x08\x03\x00\x00", NO_IDX),
        (IMAGES, b"\x00\x00\x0d" + idx_bytes(uint8(40, 28, 28))[3:], NO_IDX),
        (LABELS, idx_bytes(uint8(39)), "got .40, 28, 28. and 39 labels"),
        (LABELS, idx_bytes(torch.full((40,), 10).to(torch.uint8)), "0 to 9, but .* up to 10"),
        (IMAGES, idx_bytes(uint8(40, 32, 32)), "got .40, 32, 32. and 40 lab"),
        (LABELS, idx_bytes(uint8(40, 1)), "should have 1 dimension"),
        (IMAGES, idx_bytes(uint8(40, 784)), "should have 3 dimension"),
        (IMAGES.replace("train", "t10k"), idx_bytes(uint8(0, 28, 28)), "t10k-images-idx3-ubyte"),
        (LABELS.replace("train", "t10k"), idx_bytes(uint8(0)), "t10k-labels-idx1-ubyte"),
    ],
)
def test_wrong_parts_of_mnist_raise(tmp_path, file, content, message):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        module("mnist", tmp_path).prepare_data()


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


@pytest.mark.real_data
def test_real_mnist_as_whole_numbers(data_dir):
    folder = data_dir / "mnist"

    def images(**arguments) -> Tensor:
        data = MNISTDataModule(str(folder), pixels="uint8", **arguments)
        data.setup("test")
        return everything(data.test_dataloader())[0]

    files = MNIST(str(folder), train=False)
    assert torch.equal(images(), files.data.unsqueeze(1).float())
    assert torch.equal(images(image_size=14).double(), F.avg_pool2d(images().double(), 2).round())
