import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from datamodules import mnist
from datamodules.mnist import OFFICIAL, MNISTDataModule, read_idx_shape
from tests.helpers.http_server import serving
from tests.helpers.mnist_files import accept_mnist, idx_bytes, pack_mnist, write_mnist

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_mnist(tmp_path)
    return tmp_path


def module(folder: Path, **arguments) -> MNISTDataModule:
    arguments = {"val_size": 10, "batch_size": 8} | arguments
    return MNISTDataModule(str(folder), **arguments)


def everything(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def identity(images: Tensor) -> list[int]:
    """The grey value of the first pixel, by which the helper numbers images."""
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def test_batches(folder):
    data = module(folder)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, 1, 28, 28), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape[1:] == data.image_shape
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0


def test_test_set_is_the_test_files_as_torchvision_gives_them(folder):
    data = module(folder)
    data.setup("test")
    images, labels = everything(data.test_dataloader())
    reference = torchvision.datasets.MNIST(
        str(folder), train=False, transform=torchvision.transforms.ToTensor()
    )
    assert torch.equal(images, torch.stack([image for image, _ in reference]))
    assert labels.tolist() == [label for _, label in reference]


def test_split_is_disjoint_complete_and_keyed_by_seed(folder):
    def split(seed: int) -> tuple[set[int], set[int]]:
        data = module(folder, seed=seed)
        data.setup("fit")
        train, val = everything(data.train_dataloader())[0], everything(data.val_dataloader())[0]
        assert (len(train), len(val)) == (30, 10)
        return set(identity(train)), set(identity(val))

    train, val = split(0)
    assert train | val == set(range(40))
    assert not train & val
    assert split(0) == (train, val)
    assert split(1) != (train, val)


def test_labels_stay_with_their_images(folder):
    data = module(folder)
    data.setup("fit")
    images, labels = everything(data.train_dataloader())
    assert [number % 10 for number in identity(images)] == labels.tolist()


def test_limit_train_leaves_validation_alone(folder):
    whole, limited = module(folder), module(folder, limit_train=5)
    for data in (whole, limited):
        data.setup("fit")
    assert len(everything(limited.train_dataloader())[0]) == 5
    whole_val, limited_val = (everything(data.val_dataloader())[0] for data in (whole, limited))
    assert torch.equal(whole_val, limited_val)


@pytest.mark.parametrize("size", [14, 7])
def test_smaller_images_are_window_averages(folder, size):
    full, small = module(folder), module(folder, image_size=size)
    for data in (full, small):
        data.setup("test")
    expected = F.adaptive_avg_pool2d(everything(full.test_dataloader())[0], size)
    torch.testing.assert_close(everything(small.test_dataloader())[0], expected)
    assert small.image_shape == (1, size, size)


@pytest.mark.parametrize("size", [28, 14])
def test_grey_images_are_whole_numbers(folder, size):
    unit, grey = module(folder, image_size=size), module(folder, image_size=size, pixels="grey")
    for data in (unit, grey):
        data.setup("test")
    expected = everything(unit.test_dataloader())[0].double().mul(255)
    images, _ = everything(grey.test_dataloader())
    assert torch.equal(images, images.round())
    assert (images - expected).abs().max() <= 0.5 + 1e-4
    assert images.dtype == torch.float32


def test_one_image_has_no_batch_axis(folder):
    image, label = module(folder, image_size=14).build("test")[3]
    assert (image.shape, label.shape) == ((1, 14, 14), ())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_folder_is_not_written_to(folder, stage):
    def content() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = content()
    data = module(folder, download=True)  # Nothing is missing, so nothing is downloaded.
    data.prepare_data()
    data.setup(stage)
    assert content() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
@pytest.mark.parametrize("name", OFFICIAL)
def test_download_repairs_files_in_prepare_data_only(folder, monkeypatch, damage, name):
    accept_mnist(monkeypatch, folder)
    path = folder / "MNIST" / "raw" / name
    content, archives = path.read_bytes(), pack_mnist(folder)
    damage(path)
    data = module(folder, download=True)
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        data.setup("fit")
    with serving({f"{name}.gz": archives[f"{name}.gz"]}) as address:  # The others are not missed.
        monkeypatch.setattr(mnist, "URL", address)
        data.prepare_data()
    assert path.read_bytes() == content
    assert {path.name for path in path.parent.iterdir()} == set(OFFICIAL)
    data.setup("fit")


def test_a_broken_archive_leaves_what_was_there(folder, monkeypatch):
    accept_mnist(monkeypatch, folder)
    path = folder / "MNIST" / "raw" / TRAIN_LABELS
    path.write_bytes(b"old")
    broken = pack_mnist(folder)[f"{TRAIN_LABELS}.gz"]
    message = (
        rf"{TRAIN_LABELS}\.gz to have the MD5 checksum .* of MNIST's own.*; it was not opened"
    )
    with serving({f"{TRAIN_LABELS}.gz": broken}) as address:
        monkeypatch.setattr(mnist, "URL", address)
        with pytest.raises(ValueError, match=message):
            module(folder, download=True).prepare_data()
    assert path.read_bytes() == b"old"
    assert {path.name for path in path.parent.iterdir()} == set(OFFICIAL)


def test_files_as_long_as_the_official_ones_have_to_be_those(folder, monkeypatch):
    counts = {name: (40 if "train" in name else 12, md5) for name, (_, md5) in OFFICIAL.items()}
    monkeypatch.setattr(mnist, "OFFICIAL", counts)
    message = rf"{TRAIN_IMAGES} to have the MD5 checksum 6bbc9ace898e44ae57da46a324031adb of MNIST"
    with pytest.raises(ValueError, match=message):
        module(folder).prepare_data()


def test_labels_past_the_last_class_raise(folder):
    labels = torch.arange(40, dtype=torch.uint8) % 11
    (folder / "MNIST" / "raw" / TRAIN_LABELS).write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match=f"labels 0 to 9 in .*{TRAIN_LABELS}, but got 10. Delete"):
        module(folder).setup("fit")


def test_the_official_address():
    assert mnist.URL in torchvision.datasets.MNIST.mirrors
    assert mnist.URL.startswith("https://")


@pytest.mark.parametrize("name", sum(mnist._FILES.values(), ()))
def test_missing_file_raises_for_every_stage(folder, name):
    path = folder / "MNIST" / "raw" / name
    path.unlink()
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(FileNotFoundError, match=f"{name}, but it does not exist. Set `--data"):
            module(folder).setup(stage)


@pytest.mark.parametrize(("cut", "extra"), [(100, b""), (None, b"xyz")])
def test_truncated_or_too_long_file_raises(folder, cut, extra):
    path = folder / "MNIST" / "raw" / TRAIN_IMAGES
    content = path.read_bytes()
    path.write_bytes(content[:cut] + extra)
    size = path.stat().st_size
    message = rf"{TRAIN_IMAGES} to have 31376 bytes for its shape \(40, 28, 28\), but got {size}\."
    with pytest.raises(ValueError, match=message):
        module(folder).setup("fit")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "nothing in a file of 0 bytes"),
        (b"\x1f\x8b\x08\x00rest", "1f 8b 08 00 in a file of 8 bytes"),
        (b"<html>", "3c 68 74 6d in a file of 6 bytes"),
        (b"\x00\x00\x08\x00", "00 00 08 00 in a file of 4 bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "00 00 08 03 in a file of 6 bytes"),
    ],
)
def test_wrong_header_raises(tmp_path, content, got):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"header of an IDX file of bytes .* but got {got}"):
        read_idx_shape(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (TRAIN_LABELS, torch.zeros(39, dtype=torch.uint8)),
        (TRAIN_LABELS, torch.zeros(40, 1, dtype=torch.uint8)),
        (TRAIN_IMAGES, torch.zeros(40, 32, 32, dtype=torch.uint8)),
        (TRAIN_IMAGES, torch.zeros(40, 784, dtype=torch.uint8)),
    ],
)
def test_files_that_do_not_belong_together_raise(folder, name, array):
    (folder / "MNIST" / "raw" / name).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=f"{TRAIN_IMAGES} to hold N > 0 images of 28x28"):
        module(folder).setup("fit")


def test_validation_must_leave_something_to_train_on(folder):
    with pytest.raises(ValueError, match="`val_size` to be smaller than the 40 training images"):
        module(folder, val_size=40).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 0}, "Expected `val_size` to be at least 1, but got 0"),
        ({"limit_train": 0}, "Expected `limit_train` to be at least 1, but got 0"),
        ({"image_size": 16}, "Expected `image_size` to be a divisor of 28, but got 16"),
        ({"image_size": 0}, "Expected `image_size` to be a divisor of 28, but got 0"),
        ({"pixels": "byte"}, "Expected `pixels` to be 'unit' or 'grey', but got 'byte'"),
        ({"batch_size": 0}, "Expected `batch_size` to be at least 1, but got 0"),
    ],
)
def test_arguments_out_of_range_raise(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **arguments)


def test_empty_test_file_raises(tmp_path):
    write_mnist(tmp_path, n_test=0)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte to hold N > 0 images"):
        module(tmp_path).setup("test")


@pytest.mark.network
@pytest.mark.slow
def test_real_download(tmp_path, request):
    if "network" not in request.config.option.markexpr:
        pytest.skip("downloads MNIST; run with -m network")
    data = MNISTDataModule(str(tmp_path), download=True)
    data.prepare_data()
    data.setup("test")
    assert len(everything(data.test_dataloader())[0]) == 10_000


@pytest.mark.real_data
def test_real_files(data_dir):
    folder = data_dir / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST: {folder} does not exist")
    data = MNISTDataModule(str(folder))
    data.setup()
    images, labels = everything(data.test_dataloader())
    assert len(images) == 10_000
    # Known statistics of MNIST: counts of the ten test digits, mean grey value of the train set.
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    train, _ = everything(data.train_dataloader())
    val, _ = everything(data.val_dataloader())
    assert (len(train), len(val)) == (55_000, 5_000)
    mean = (train.double().sum() + val.double().sum()) / (60_000 * 784)
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.real_data
def test_real_files_in_grey(data_dir):
    folder = data_dir / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST: {folder} does not exist")
    data = MNISTDataModule(str(folder), pixels="grey")
    data.setup("test")
    images, _ = everything(data.test_dataloader())
    files = torchvision.datasets.MNIST(str(folder), train=False)
    assert torch.equal(images, files.data.unsqueeze(1).float())
    assert (float(images.min()), float(images.max())) == (0.0, 255.0)
    small = MNISTDataModule(str(folder), pixels="grey", image_size=14)
    small.setup("test")
    averages = F.avg_pool2d(images.double(), 2)
    assert torch.equal(everything(small.test_dataloader())[0].double(), averages.round())


@pytest.mark.real_data
def test_real_files_with_one_cut_short(data_dir, tmp_path):
    raw = data_dir / "mnist" / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip(f"no MNIST: {raw} does not exist")
    copy = tmp_path / "MNIST" / "raw"
    copy.mkdir(parents=True)
    for path in raw.iterdir():
        shutil.copyfile(path, copy / path.name)
    labels = copy / TRAIN_LABELS
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"to have 60008 bytes .* but got 60007\."):
        MNISTDataModule(str(tmp_path)).setup("fit")
