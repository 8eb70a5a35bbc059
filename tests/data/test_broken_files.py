"""Every file of every data set, damaged in every way: an error that names it, never a surprise.

What cannot be told: in the text of PhysioNet (unpacked, and the outcomes) and Activity, a change
to other valid text, such as one digit for another or the loss of whole lines at the end.
"""

import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from datamodules.base import TensorDataModule
from datamodules.hopper_simulator import load_hopper
from tests.helpers.data_sets import DATA_SETS, DOWNLOADED, all_batches, same
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.http_server import serving
from tests.helpers.threats import threat

MARKER = "marker"
STAGES = ("fit", "validate", "test", "predict")


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


# Each is given the content and a path at which no file may appear.
DAMAGES = {
    "truncated": lambda content, marker: content[:-1],
    "halved": lambda content, marker: content[: len(content) // 2],
    "empty": lambda content, marker: b"",
    "flipped": lambda content, marker: flipped(content),
    "web page": lambda content, marker: (
        b"<!DOCTYPE html>\n<html><body>Log in, please</body></html>\n"
    ),
    "threat": lambda content, marker: threat(marker),
}
TEXT = ("set-a/132539.txt", "Outcomes-a.txt", "ConfLongDemo_JSI.txt")
CASES = [
    (name, file, damage)
    for name, data_set in DATA_SETS.items()
    for file in data_set.files
    for damage in DAMAGES
    # The last byte of a text ends its last line; the other one cannot be told.
    if (damage, file in TEXT) != ("truncated", True)
]


@pytest.mark.parametrize(("name", "file", "damage"), CASES)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, monkeypatch, name, file, damage):
    data_set, folder, marker = DATA_SETS[name], tmp_path / "data", tmp_path / MARKER
    data_set.write(monkeypatch, folder)
    all_batches(data_set.build(folder, tmp_path / "cache"))  # Whole, they are read.
    path = folder / file
    path.write_bytes(DAMAGES[damage](path.read_bytes(), marker))
    with pytest.raises((ValueError, OSError), match=path.name) as caught:
        all_batches(data_set.build(folder, tmp_path / "cache"))
    remedies = ("--data.download true", "--data.data_dir", "Get the file", "Unpack or download")
    assert any(remedy in str(caught.value) for remedy in remedies), caught.value
    assert not marker.exists()


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_missing_file_is_named_for_every_stage(tmp_path, monkeypatch, name):
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    for file in data_set.files:
        data_set.write(monkeypatch, folder)
        path = folder / file
        path.unlink()
        # One record of many is missed by count.
        error, what = (
            (ValueError, "40 records in .*set-a, but got 39")
            if path.parent.name == "set-a"
            else (FileNotFoundError, rf"{path.name},? .*(does|do) not exist")
        )
        steps = [partial(data_set.build(folder, tmp_path / "cache").setup, s) for s in STAGES]
        for step in (data_set.build(folder, tmp_path / "cache").prepare_data, *steps):
            with pytest.raises(error, match=what):
                step()
        shutil.rmtree(folder)


@pytest.mark.parametrize("file", TEXT)
def test_the_end_of_the_last_line_is_no_loss(tmp_path, monkeypatch, file):
    name = next(name for name in reversed(DATA_SETS) if file in DATA_SETS[name].files)
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    data_set.write(monkeypatch, folder)
    whole = all_batches(data_set.build(folder, tmp_path / "cache"))
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    assert same(all_batches(data_set.build(folder, tmp_path / "cache")), whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_download_replaces_what_is_damaged(tmp_path, monkeypatch, name, damage):
    data_set, folder, marker = DATA_SETS[name], tmp_path / "data", tmp_path / MARKER
    data_set.write(monkeypatch, folder)
    whole = all_batches(data_set.build(folder, tmp_path / "cache"))
    contents = data_set.pack(folder)
    for file in data_set.files:
        path = folder / file
        path.write_bytes(DAMAGES[damage](path.read_bytes(), marker))
    with serving(contents) as address:
        data_set.move(monkeypatch, address)
        repaired = all_batches(data_set.build(folder, tmp_path / "cache", download=True))
    assert same(repaired, whole)
    assert not marker.exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch, name, damage):
    data_set, folder, marker = DATA_SETS[name], tmp_path / "data", tmp_path / MARKER
    data_set.write(monkeypatch, tmp_path / "source")
    contents = data_set.pack(tmp_path / "source")
    broken = {file: DAMAGES[damage](content, marker) for file, content in contents.items()}
    with serving(broken) as address:
        data_set.move(monkeypatch, address)
        with pytest.raises((ValueError, OSError), match=next(iter(contents))):
            data_set.build(folder, tmp_path / "cache", download=True).prepare_data()
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert not marker.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch, damage):
    data_set, folder, marker = DATA_SETS["physionet"], tmp_path / "data", tmp_path / MARKER
    data_set.write(monkeypatch, folder)
    whole = all_batches(data_set.build(folder, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content, marker))
    assert same(all_batches(data_set.build(folder, tmp_path / "cache")), whole)
    assert list((tmp_path / "cache").iterdir()) == [path]
    assert not marker.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_trajectories_are_simulated_again(tmp_path, monkeypatch, damage):
    marker = tmp_path / MARKER
    states = torch.randn(5, 20, 14, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("datamodules.hopper_simulator.simulate_hopper", lambda *_: states)
    load_hopper(tmp_path / "cache", 5, 20)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes(), marker))
    assert torch.equal(load_hopper(tmp_path / "cache", 5, 20), states)
    assert torch.equal(torch.load(path)["states"], states)
    assert not marker.exists()


def test_a_legacy_file_of_torchvision_is_not_opened(tmp_path, monkeypatch):
    # Where these two are there, torchvision reads them in place of the files that were checked.
    data_set, folder, marker = DATA_SETS["mnist"], tmp_path / "data", tmp_path / MARKER
    data_set.write(monkeypatch, folder)
    whole = all_batches(data_set.build(folder, tmp_path / "cache"))
    processed = folder / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(threat(marker))
    assert same(all_batches(data_set.build(folder, tmp_path / "cache")), whole)
    assert not marker.exists()


def test_the_threat_is_real(tmp_path):
    pickle.loads(threat(tmp_path / MARKER)).close()
    assert Path(tmp_path, MARKER).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_trajectories_that_cannot_be_simulated_are_named(
    tmp_path, monkeypatch, caplog, damage
):
    without_dm_control(monkeypatch)
    write_hopper(tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes(), tmp_path / MARKER))
    message = "install dm-control.*, or copy the file of a machine that has simulated it"
    with caplog.at_level("INFO"), pytest.raises(ModuleNotFoundError, match=message):
        load_hopper(tmp_path / "cache", 40, 20)
    assert f"The cache {path} is broken and is made again." in caplog.messages
    assert not (tmp_path / MARKER).exists()


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(each) for each in cls.__subclasses__()))


def test_no_data_set_is_left_out(tmp_path):
    found = [cls for cls in subclasses(TensorDataModule) if cls.__module__.startswith("datamod")]
    tried = {type(data_set.build(tmp_path, tmp_path)) for data_set in DATA_SETS.values()}
    assert tried == {cls for cls in found if cls.folder_name}
