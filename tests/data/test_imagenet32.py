import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import imagenet32
from datamodules.imagenet32 import ImageNet32DataModule, read_batch
from tests.helpers.imagenet_files import accept_imagenet32, batch_bytes, write_imagenet32

FORMS = ("pickle", "npz", "python2")
DATA = np.zeros((2, 3072), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_imagenet32(tmp_path)
    accept_imagenet32(monkeypatch)
    return tmp_path


def module(folder: Path, variant="official", **arguments) -> ImageNet32DataModule:
    arguments = {"val_size": 10, "batch_size": 8, "pixels": "grey"} | arguments
    return ImageNet32DataModule(variant, str(folder), **arguments)


def everything(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_read(tmp_path, monkeypatch, form):
    write_imagenet32(tmp_path, form=form)
    accept_imagenet32(monkeypatch)
    data = module(tmp_path, horizontal_flip=True, pixels="unit")
    data.prepare_data()
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, 3, 32, 32), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (data.image_shape, data.num_classes) == ((3, 32, 32), 1000)
    _, labels = everything(data.test_dataloader())
    assert labels.tolist() == [999 - number for number in range(128, 140)]


def test_formats_agree_and_pixels_are_channels_first(tmp_path, monkeypatch):
    accept_imagenet32(monkeypatch)
    read = {}
    for form in FORMS:
        write_imagenet32(tmp_path / form, form=form)
        read[form] = module(tmp_path / form).read(train=True)
    for images, labels in read.values():
        assert torch.equal(images, read["npz"][0])
        assert torch.equal(labels, read["npz"][1])
    first = np.load(tmp_path / "npz" / "train_data_batch_1.npz")["data"][0]
    # The first 1024 numbers are the red channel, row by row.
    assert read["npz"][0][0, 0].flatten().tolist() == first[:1024].tolist()
    assert read["npz"][0][0, 2, 31].tolist() == first[-32:].tolist()


def test_training_files_are_split_with_their_labels(folder):
    data = module(folder)
    data.setup("fit")
    parts = [everything(loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    numbers = [images[:, 0, 0, 0].long() for images, _ in parts]
    assert [len(part) for part in numbers] == [30, 10]
    assert torch.cat(numbers).sort().values.tolist() == list(range(40))
    for part, (_, labels) in zip(numbers, parts, strict=True):
        assert torch.equal(labels, 999 - part)


def test_labels_reach_both_ends(folder):
    for number, path in enumerate(sorted(folder.glob("train*"))):
        path.write_bytes(batch_bytes(np.zeros((4, 3072), np.uint8), [1, 1000, 1, number + 1]))
    _, labels = module(folder).read(train=True)
    assert (int(labels.min()), int(labels.max())) == (0, 999)


def test_npz_comes_before_pickles(folder):
    write_imagenet32(folder, form="npz")
    for path in folder.iterdir():
        if path.suffix != ".npz":
            path.write_bytes(b"not to be read")
    module(folder).setup()


def test_an_incomplete_set_of_npz_files_is_left_alone(folder):
    np.savez(folder / "train_data_batch_1.npz", data=DATA, labels=[1, 2])
    module(folder).setup()


def test_variant_and_sizes_are_printed(folder, caplog):
    with caplog.at_level("INFO"):
        data = module(folder)
        data.setup("fit")
        data.setup("test")
    assert data.variant == "official"
    assert [record.message for record in caplog.records] == [
        "ImageNet 32x32, variant 'official': 30 train, 10 val images",
        "ImageNet 32x32, variant 'official': 30 train, 10 val, 12 test images",
    ]


def test_counts_of_the_variants():
    assert imagenet32.COUNTS == {
        "official": {"training": 1_281_167, "test": 50_000},
        "withdrawn": {"training": 1_281_149, "test": 49_999},
    }


@pytest.mark.parametrize(("stage", "part", "n"), [("fit", "training", 40), ("test", "test", 12)])
def test_files_of_the_other_variant_raise(folder, stage, part, n):
    message = (
        f"Expected {n - 1} {part} images in .* for variant='withdrawn', but got {n}. That is the "
        "count of the variant 'official': set `--data.variant official`"
    )
    with pytest.raises(ValueError, match=message):
        module(folder, "withdrawn").setup(stage)


@pytest.mark.parametrize("n_train", [38, 45])
def test_a_count_of_no_variant_raises(tmp_path, monkeypatch, n_train):
    write_imagenet32(tmp_path, n_train)
    accept_imagenet32(monkeypatch)
    message = rf"Expected 40 training images .*'official', but got {n_train}\. No known variant"
    with pytest.raises(ValueError, match=message):
        module(tmp_path).setup("fit")


def test_variant_must_be_given_and_known(tmp_path):
    with pytest.raises(TypeError, match="variant"):
        ImageNet32DataModule(data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="one of 'official', 'withdrawn', but got 'old'"):
        module(tmp_path, "old")


@pytest.mark.parametrize("step", ["prepare_data", "setup"])
def test_missing_files_raise(folder, step):
    (folder / "train_data_batch_7").unlink()
    (folder / "train_data_batch_9").unlink()
    message = (
        r"to hold the training files .*, train_data_batch_1 to train_data_batch_10 .*but "
        r"train_data_batch_7, train_data_batch_9 do not exist\. Log in at image-net\.org, choose "
        r"'Download downsampled image data \(32x32\)'"
    )
    with pytest.raises(FileNotFoundError, match=message):
        getattr(module(folder), step)()


def test_missing_test_file_raises_for_training_too(folder):
    (folder / "val_data").unlink()
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(FileNotFoundError, match=r"the test files .* val_data does not exist"):
            module(folder).setup(stage)


class Threat:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def test_no_code_in_a_pickle_is_run(folder):
    victim = folder / "victim"
    content = {"data": DATA, "labels": [1, 2], "mean": Threat(victim)}
    (folder / "train_data_batch_4").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"train_data_batch_4 to be a pickle of .* asks for \w*"):
        module(folder).setup("fit")
    assert not victim.exists()


def test_no_code_in_an_npz_file_is_run(tmp_path):
    victim = tmp_path / "victim"
    objects = np.array([Threat(victim)], dtype=object)
    inside, bare = tmp_path / "inside.npz", tmp_path / "bare.npz"
    np.savez(inside, data=DATA, labels=objects)
    bare.write_bytes(pickle.dumps(Threat(victim)))
    for path in (inside, bare):
        with pytest.raises(ValueError, match="of plain arrays, but reading it failed: ValueError"):
            read_batch(path)
    assert not victim.exists()


def write(path: Path, content) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_bytes(pickle.dumps(content, protocol=3))
    return path


@pytest.mark.parametrize("name", ["val_data", "val_data.npz"])
def test_truncated_or_foreign_files_raise(tmp_path, name):
    path = write(tmp_path / name, {"data": DATA, "labels": [1, 2]})
    content = path.read_bytes()
    for broken in (b"", b"<html>", content[:1000], content[: len(content) // 2], content[200:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{name} to be a complete .* Unpack or download"):
            read_batch(path)


def test_an_array_with_the_ending_npz_raises(tmp_path):
    path = tmp_path / "val_data.npz"
    with path.open("wb") as file:
        np.save(file, DATA)
    with pytest.raises(ValueError, match=r"val_data\.npz to be a complete \.npz file"):
        read_batch(path)


@pytest.mark.parametrize("name", ["val_data", "val_data.npz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": DATA}, r"a dictionary with 'data' and 'labels', but got \['data'\]"),
        ({"data": DATA.astype(np.int64), "labels": [1, 2]}, r"N > 0 .*got int64 of shape \(2, 3"),
        ({"data": DATA[:, :768], "labels": [1, 2]}, r"got uint8 of shape \(2, 768\)"),
        ({"data": DATA.reshape(2, 3, 32, 32), "labels": [1, 2]}, r"uint8 of shape \(2, 3, 32, 32"),
        ({"data": DATA[:0], "labels": []}, r"got uint8 of shape \(0, 3072\)"),
        ({"data": DATA, "labels": np.ones(3, int)}, r"be 2 whole .* got int64 of shape \(3,\)"),
        ({"data": DATA, "labels": np.ones((2, 1), int)}, r"got int64 of shape \(2, 1\)"),
        ({"data": DATA, "labels": np.ones(2)}, r"got float64 of shape \(2,\)"),
        ({"data": DATA, "labels": [0, 999]}, "to lie in 1 to 1000, but got 0 to 999"),
        ({"data": DATA, "labels": [1, 1001]}, "to lie in 1 to 1000, but got 1 to 1001"),
    ],
)
def test_wrong_contents_raise(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        read_batch(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "'labels', but got list"),
        ({1: 2, "a": 3}, r"but got \['1', 'a'\]"),
        ({"data": [1, 2], "labels": [1, 2]}, "but got list of length 2"),
        ({"data": None, "labels": [1, 2]}, "but got NoneType"),
        ({"data": DATA, "labels": ["1", "2"]}, "2 whole numbers.* but got list of length 2"),
        ({"data": DATA, "labels": [True, True]}, "2 whole numbers.* but got list of length 2"),
        ({"data": DATA, "labels": [1, 2**80]}, "2 whole numbers.* but got object of shape"),
        ({"data": DATA, "labels": (1, 2)}, "2 whole numbers.* but got tuple"),
    ],
)
def test_wrong_contents_of_pickles_raise(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_batch(write(tmp_path / "val_data", content))


def test_labels_as_arrays_and_numpy_numbers_are_read(tmp_path):
    for labels in (np.array([1, 1000], np.uint16), [np.int64(1), np.int32(1000)]):
        _, got = read_batch(write(tmp_path / "val_data", {"data": DATA, "labels": labels}))
        assert got.tolist() == [1, 1000]
