from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.datasets import SVHN

from datamodules import svhn
from datamodules.svhn import SVHNDataModule
from tests.helpers.http_server import serving
from tests.helpers.svhn_files import NAMES, accept_svhn, write_svhn

STAGES = ("fit", "validate", "test", "predict")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_svhn(tmp_path)
    accept_svhn(monkeypatch, tmp_path)
    return tmp_path


def module(folder: Path, **arguments) -> SVHNDataModule:
    arguments = {"val_size": 10, "batch_size": 8} | arguments
    return SVHNDataModule(str(folder), **arguments)


def everything(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches(folder):
    data = module(folder)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, 3, 32, 32), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape[1:] == data.image_shape
    assert data.num_classes == 10
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0


def test_test_set_is_the_test_file_as_torchvision_gives_it(folder):
    reference = SVHN(str(folder), "test", transform=torchvision.transforms.PILToTensor())
    expected = torch.stack([image for image, _ in reference])
    for pixels, values in (("grey", expected.float()), ("unit", expected.float() / 255.0)):
        data = module(folder, pixels=pixels)
        data.setup("test")
        images, labels = everything(data.test_dataloader())
        assert torch.equal(images, values)
        assert labels.tolist() == [label for _, label in reference]


def test_training_file_is_split_with_its_labels_and_ten_is_zero(folder):
    data = module(folder, pixels="grey")
    data.setup("fit")
    parts = [everything(loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    numbers = [images[:, 0, 0, 0].long() for images, _ in parts]
    assert [len(part) for part in numbers] == [30, 10]
    assert torch.cat(numbers).sort().values.tolist() == list(range(40))
    for part, (images, labels) in zip(numbers, parts, strict=True):
        assert torch.equal(labels, part % 10)
        assert (images[:, 0, 0] == part[:, None]).all()  # the top row, not the left column


@pytest.mark.parametrize("download", [False, True])
def test_complete_files_are_neither_written_nor_downloaded(folder, monkeypatch, download):
    def content() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    monkeypatch.setattr(svhn, "download", lambda *_: pytest.fail("Nothing is missing."))
    before = content()
    data = module(folder, download=download)
    data.prepare_data()
    data.setup()
    assert content() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
@pytest.mark.parametrize("name", NAMES.values())
def test_download_repairs_files_in_prepare_data_only(folder, monkeypatch, damage, name):
    content = (folder / name).read_bytes()
    damage(folder / name)
    data = module(folder, download=True)
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        data.setup("fit")
    with serving({name: content}) as address:  # The other file is not missed.
        monkeypatch.setattr(svhn, "URL", address)
        data.prepare_data()
    assert (folder / name).read_bytes() == content
    assert {path.name for path in folder.iterdir()} == set(NAMES.values())
    data.setup("fit")


def test_a_broken_download_leaves_what_was_there(folder, monkeypatch):
    path = folder / NAMES["test"]
    path.write_bytes(b"old")
    with serving({path.name: b"broken"}) as address:
        monkeypatch.setattr(svhn, "URL", address)
        with pytest.raises(
            ValueError, match=r"to have the MD5 checksum .* of SVHN's own.* Try aga"
        ):
            module(folder, download=True).prepare_data()
    assert path.read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == set(NAMES.values())


def test_the_official_address():
    urls = [url for url, *_ in SVHN.split_list.values()]
    assert all(url.startswith(svhn.URL.replace("https", "http")) for url in urls)
    assert svhn.URL.startswith("https://")


@pytest.mark.parametrize("name", NAMES.values())
def test_missing_file_raises_for_every_stage(folder, name):
    (folder / name).unlink()
    message = f"SVHN file .*{name}, but it does not exist. Set `--data.download true`, or `--data"
    with pytest.raises(FileNotFoundError, match=message):
        module(folder).prepare_data()
    for stage in STAGES:
        with pytest.raises(FileNotFoundError, match=r"`train_32x32\.mat` and `test_32x32\.mat`"):
            module(folder).setup(stage)


@pytest.mark.parametrize("name", NAMES.values())
def test_broken_file_raises_for_every_stage(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    message = f"{name} to have the MD5 checksum [0-9a-f]{{32}} of SVHN's own file, but got "
    with pytest.raises(ValueError, match=message):
        module(folder).prepare_data()
    for stage in STAGES:
        with pytest.raises(ValueError, match=message):
            module(folder).setup(stage)


def test_official_checksums_are_looked_for(tmp_path):
    write_svhn(tmp_path)  # Not accepted: torchvision's own checksums stand.
    message = "train_32x32.mat to have the MD5 checksum e26dedcc434d2e4c54c9b2d4a06d8373 of SVHN"
    with pytest.raises(ValueError, match=message):
        module(tmp_path).prepare_data()


def check_real_files(data: SVHNDataModule) -> None:
    """Compare with the published numbers of images and the most frequent digit."""
    data.prepare_data()
    data.setup()
    _, labels = everything(data.test_dataloader())
    assert len(labels) == 26_032
    assert int(labels.bincount(minlength=10).argmax()) == 1
    assert len(data.build("train")) + len(data.build("val")) == 73_257


@pytest.mark.network
@pytest.mark.slow
def test_real_download(tmp_path, request):
    if "network" not in request.config.option.markexpr:
        pytest.skip("downloads SVHN; run with -m network")
    check_real_files(SVHNDataModule(str(tmp_path), download=True))


@pytest.mark.real_data
@pytest.mark.slow
def test_real_files(data_dir):
    folder = data_dir / "svhn"
    if not folder.is_dir():
        pytest.skip(f"no SVHN: {folder} does not exist")
    check_real_files(SVHNDataModule(str(folder)))
