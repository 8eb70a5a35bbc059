import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import imagenet32
from datamodules.imagenet32 import ImageNet32DataModule, count_images
from tests.helpers.data_sets import everything
from tests.helpers.image_files import accept_imagenet32, write_imagenet32
from tests.helpers.threats import Threat, threat

DATA = np.zeros((2, 3072), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_imagenet32(tmp_path)
    accept_imagenet32(monkeypatch)
    return tmp_path


def module(folder: Path, variant="official", **arguments) -> ImageNet32DataModule:
    arguments = {"val_size": 10, "batch_size": 8, "pixels": "uint8"} | arguments
    return ImageNet32DataModule(variant, str(folder), **arguments)


def test_pixels_are_channels_first_and_labels_belong_to_their_images(folder):
    data = module(folder)
    images, _ = data.read(train=True)
    first = np.load(folder / "train_data_batch_1.npz")["data"][0]
    # The first 1024 numbers are the red channel, row by row.
    assert images[0, 0].flatten().tolist() == first[:1024].tolist()
    assert images[0, 2, 31].tolist() == first[-32:].tolist()
    data.setup("fit")
    images, labels = everything(data.train_dataloader())
    assert torch.equal(labels, 999 - images[:, 0, 0, 0].long())


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, ">i4"])
def test_labels_of_any_integer_type_reach_both_ends(folder, dtype):
    for number, path in enumerate(sorted(folder.glob("train*"))):
        labels = np.array([1, 1000, 1, number + 1], dtype)
        np.savez_compressed(path, data=np.zeros((4, 3072), np.uint8), labels=labels)
    _, labels = module(folder).read(train=True)
    assert (int(labels.min()), int(labels.max())) == (0, 999)


def test_variant_and_sizes_are_printed(folder, caplog):
    with caplog.at_level("INFO"):
        data = module(folder)
        data.setup("fit")
        data.setup("test")
    assert [record.message for record in caplog.records] == [
        "ImageNet 32x32, variant 'official': 30 train, 10 val images",
        "ImageNet 32x32, variant 'official': 30 train, 10 val, 12 test images",
    ]


def test_counts_of_the_variants():
    assert imagenet32.COUNTS == {
        "official": {"training": 1_281_167, "test": 50_000},
        "withdrawn": {"training": 1_281_149, "test": 49_999},
    }


def test_files_of_the_other_variant_raise(folder):
    message = (
        "Expected 39 training images in .* for variant='withdrawn', but got 40. "
        "Set `--data.variant official`"
    )
    with pytest.raises(ValueError, match=message):
        module(folder, "withdrawn").prepare_data()


@pytest.mark.parametrize(
    ("part", "n_train", "n_test"), [("training", 38, 12), ("training", 45, 12), ("test", 40, 13)]
)
def test_a_count_of_no_variant_raises(tmp_path, monkeypatch, part, n_train, n_test):
    write_imagenet32(tmp_path, n_train, n_test)
    accept_imagenet32(monkeypatch)
    with pytest.raises(ValueError, match=rf"{part} images .*'official', but got \d+\. No known v"):
        module(tmp_path).setup("test")


def test_missing_files_raise(folder):
    for number in (7, 9):
        (folder / f"train_data_batch_{number}.npz").unlink()
    message = (
        r"to hold the training files .*, train_data_batch_1.npz to train_data_batch_10.npz, but "
        r"train_data_batch_7.npz, train_data_batch_9.npz do not exist\. Log in at image-net\.org, "
        r"choose 'Download downsampled image data \(32x32\)' and there the npz format"
    )
    with pytest.raises(FileNotFoundError, match=message):
        module(folder).prepare_data()


def test_a_folder_of_pickles_is_told_which_download_to_take(folder):
    marker = folder / "marker"
    for path in folder.glob("*.npz"):
        path.unlink()
        path.with_suffix("").write_bytes(threat(marker))
    message = "exist, only pickles, which may run code. .* the npz format"
    with pytest.raises(FileNotFoundError, match=message):
        module(folder).prepare_data()
    assert not marker.exists()


def test_no_code_in_an_npz_file_is_run(tmp_path):
    marker, inside, bare = (tmp_path / name for name in ("marker", "inside.npz", "bare.npz"))
    np.savez(inside, data=DATA, labels=np.array([Threat(marker)] * 2, dtype=object))
    bare.write_bytes(threat(marker))
    with pytest.raises(ValueError, match=r"2 whole numbers.* but got object of shape"):
        count_images(inside)
    with pytest.raises(ValueError, match=r"with plain arrays .* reading it failed: BadZipFile"):
        count_images(bare)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": DATA}, r"plain arrays 'data' and 'labels', but reading it failed: KeyError"),
        ({"data": DATA.astype(np.int64), "labels": [1, 2]}, r"N > 0 .*got int64 of shape \(2, 3"),
        ({"data": DATA[:, :768], "labels": [1, 2]}, r"got uint8 of shape \(2, 768\)"),
        ({"data": DATA.reshape(2, 3, 32, 32), "labels": [1, 2]}, r"uint8 of shape \(2, 3, 32, 32"),
        ({"data": DATA[:0], "labels": []}, r"got uint8 of shape \(0, 3072\)"),
        ({"data": DATA, "labels": np.ones(3, int)}, r"be 2 whole .* got int64 of shape \(3,\)"),
        ({"data": DATA, "labels": np.ones((2, 1), int)}, r"got int64 of shape \(2, 1\)"),
        ({"data": DATA, "labels": np.ones(2)}, r"got float64 of shape \(2,\)"),
        ({"data": DATA, "labels": ["1", "2"]}, r"got <U1 of shape \(2,\)"),
    ],
)
def test_wrong_contents_raise(tmp_path, content, message):
    np.savez(tmp_path / "val_data.npz", **content)
    with pytest.raises(ValueError, match=f"val_data.npz .*{message}"):
        count_images(tmp_path / "val_data.npz")


@pytest.mark.parametrize("labels", [[0, 999], [1, 1001]])
def test_labels_out_of_range_raise(folder, labels):
    content = np.zeros((12, 3072), np.uint8)
    np.savez(folder / "val_data.npz", data=content, labels=labels * 6)
    message = f"to lie in 1 to 1000, but got {min(labels)} to {max(labels)}"
    with pytest.raises(ValueError, match=message):
        module(folder).setup("test")


def test_what_unpacks_to_gigabytes_is_not_read(folder, monkeypatch):
    path = folder / "train_data_batch_1.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as members:
        for key, shape, dtype in (("data", (2**40, 3072), "|u1"), ("labels", (2**40,), "<i8")):
            with members.open(f"{key}.npy", "w") as file:
                header = {"shape": shape, "fortran_order": False, "descr": dtype}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(bytes(2**20))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("Its header says enough."))
    with pytest.raises(ValueError, match=r"but got 1,099,511,627,8\d\d\. No known variant"):
        module(folder).setup("fit")


def test_another_array_of_the_same_name_is_not_read(folder):
    with zipfile.ZipFile(folder / "val_data.npz", "a") as members:
        members.writestr("data", b"not an array")  # np.load takes it for 'data'.
    module(folder).setup("test")
