"""Every file of every data set, damaged in every way: an error that names it, never a surprise.

What cannot be told: in the text of PhysioNet (unpacked, and the outcomes) and Activity, a change
to other valid text, such as one digit for another or the loss of whole lines at the end.
"""

import os
import pickle
from collections.abc import Iterator
from functools import partial
from inspect import isabstract, signature
from pathlib import Path

import pytest
import torch

import datamodules
from datamodules.hopper_simulator import load_hopper
from tests.helpers.data_sets import DATA_SETS, DOWNLOADED, DataSet, all_batches, same
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.http_server import serving
from tests.helpers.read_only import read_only
from tests.helpers.threats import threat

STAGES = ("fit", "validate", "test", "predict")
REMEDIES = ("--data.download true", "--data.data_dir", "Get the file", "Unpack or download")
PAGE = b"<!DOCTYPE html>\n<html><body>Log in, please</body></html>\n"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def files_in_turn(data_set: DataSet, folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each file with its content, which it gets back afterwards."""
    for file in data_set.files:
        path, content = folder / file, (folder / file).read_bytes()
        yield path, content
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def expect_a_remedy(data_set: DataSet, folder: Path, path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=path.name) as caught:
        all_batches(data_set.build(folder))
    assert any(remedy in str(caught.value) for remedy in REMEDIES), path


# Each is given the content and a path at which no file may appear.
DAMAGES = {
    "truncated": lambda content, marker: content[:-1],
    "halved": lambda content, marker: content[: len(content) // 2],
    "empty": lambda content, marker: b"",
    "flipped": lambda content, marker: flipped(content),
    "web page": lambda content, marker: PAGE,
    "threat": lambda content, marker: threat(marker),
}
TEXT = ("132539.txt", "Outcomes-a.txt", "ConfLongDemo_JSI.txt")


@pytest.fixture(scope="module", params=DATA_SETS)
def written(request, tmp_path_factory):
    """A data set, its complete files and its batches, for tests that leave them as they were."""
    data_set, folder = DATA_SETS[request.param], tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        data_set.write(monkeypatch, folder)
        yield data_set, folder, all_batches(data_set.build(folder))


def test_a_damaged_file_is_named_with_a_remedy(written, tmp_path):
    data_set, folder, whole = written
    marker = tmp_path / "marker"
    for path, content in files_in_turn(data_set, folder):
        for name, damage in DAMAGES.items():
            path.write_bytes(damage(content, marker))
            if name == "truncated" and path.name in TEXT:  # Its last byte ends its last line.
                assert same(all_batches(data_set.build(folder)), whole)
            else:
                expect_a_remedy(data_set, folder, path)
    assert not marker.exists()


def test_a_device_or_pipe_in_place_of_a_file_is_not_read(written):
    data_set, folder, _ = written
    for path, _ in files_in_turn(data_set, folder):
        for place in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
            path.unlink()
            place(path)
            expect_a_remedy(data_set, folder, path)


def test_a_missing_file_is_named_for_every_stage(written):
    data_set, folder, _ = written
    for path, _ in files_in_turn(data_set, folder):
        path.unlink()
        # One record of many is missed by count.
        error, what = (
            (ValueError, "40 records in .*set-a, but got 39")
            if path.parent.name == "set-a"
            else (FileNotFoundError, rf"{path.name},? .*(does|do) not exist")
        )
        for step in (
            data_set.build(folder).prepare_data,
            *(partial(data_set.build(folder).setup, stage) for stage in STAGES),
        ):
            with pytest.raises(error, match=what):
                step()


def test_a_read_only_folder_is_enough(written):
    data_set, folder, whole = written
    with read_only(folder):
        assert same(all_batches(data_set.build(folder)), whole)
        if data_set.pack:
            assert same(all_batches(data_set.build(folder, download=True)), whole)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_into_a_read_only_folder_says_what_to_do(tmp_path, monkeypatch, name):
    data_set, folder, parent = DATA_SETS[name], tmp_path / "data", tmp_path / "parent"
    data_set.write(monkeypatch, folder)
    data_set.move(monkeypatch, "http://127.0.0.1:9/")
    (folder / data_set.files[-1]).unlink()
    parent.mkdir()
    message = "to download .* Permission denied.* set `--data.data_dir` to a folder that can be w"
    for place in (folder, parent / "new"):
        data = data_set.build(place, download=True)
        with read_only(folder, parent), pytest.raises(OSError, match=message):
            data.prepare_data()


@pytest.mark.parametrize("damage", ["missing", *DAMAGES])
@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_download_replaces_what_is_damaged_alone(tmp_path, monkeypatch, name, damage):
    data_set, marker, folder = DATA_SETS[name], tmp_path / "marker", tmp_path / "data"
    data_set.write(monkeypatch, folder)
    packed, path = data_set.pack(folder), folder / data_set.files[-1]

    def files() -> dict[Path, tuple[int, bytes]]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), marker))
    broken = files()
    with pytest.raises((FileNotFoundError, ValueError), match=path.name):
        data_set.build(folder, download=True).setup("fit")
    with serving({file: content[:-1] for file, content in packed.items()}) as address:
        data_set.move(monkeypatch, address)
        with pytest.raises(ValueError, match=r"MD5 hash of downloaded file .* does not match"):
            data_set.build(folder, download=True).prepare_data()
    assert files() == broken
    with serving(packed) as address:
        data_set.move(monkeypatch, address)
        data_set.build(folder, download=True).prepare_data()
    after = files()
    assert {file: content for file, (_, content) in after.items()} == {
        file: content for file, (_, content) in before.items()
    }
    assert [file for file in after if after[file][0] != before[file][0]] == [path]
    assert not marker.exists()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch, name):
    data_set, folder, marker = DATA_SETS[name], tmp_path / "data", tmp_path / "marker"
    data_set.write(monkeypatch, tmp_path / "source")
    contents = data_set.pack(tmp_path / "source")
    for damage in DAMAGES.values():
        broken = {file: damage(content, marker) for file, content in contents.items()}
        with serving(broken) as address:
            data_set.move(monkeypatch, address)
            with pytest.raises((ValueError, OSError), match="|".join(contents)):
                data_set.build(folder, download=True).prepare_data()
        assert not [path for path in folder.rglob("*") if path.is_file()]
    assert not marker.exists()


SCRAPS = {
    "no tensor": lambda path: torch.save(Path("not a tensor"), path),
    "others": lambda path: torch.save({"x": torch.zeros(1)}, path),
    "another shape": lambda path: torch.save({"states": torch.zeros(5, 20, 13)}, path),
    "not finite": lambda path: torch.save({"states": torch.full((5, 20, 14), torch.nan)}, path),
}


@pytest.mark.parametrize("damage", [*DAMAGES, *SCRAPS])
def test_damaged_trajectories_are_simulated_again(tmp_path, monkeypatch, caplog, damage):
    marker, made = tmp_path / "marker", []
    states = torch.randn(5, 20, 14, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        "datamodules.hopper_simulator.simulate_hopper", lambda *_: made.append(1) or states
    )
    load_hopper(tmp_path / "cache", 5, 20)
    (path,) = (tmp_path / "cache").iterdir()
    if damage in SCRAPS:
        SCRAPS[damage](path)
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), marker))
    with caplog.at_level("INFO"):
        assert torch.equal(load_hopper(tmp_path / "cache", 5, 20), states)
    assert f"The cache {path} is broken and is made again" in caplog.text
    assert len(made) == 2
    assert list((tmp_path / "cache").iterdir()) == [path]
    with read_only(tmp_path):
        assert torch.equal(load_hopper(tmp_path / "cache", 5, 20), states)
    assert len(made) == 2
    assert not marker.exists()


def test_trajectories_that_cannot_be_kept_or_simulated_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "datamodules.hopper_simulator.simulate_hopper", lambda *_: torch.ones(5, 20, 14)
    )
    message = "Expected to write the cache .*, but got: .* Set `--data.cache_dir` to a folder that"
    with read_only(tmp_path), pytest.raises(OSError, match=message):
        load_hopper(tmp_path, 5, 20)
    monkeypatch.undo()
    without_dm_control(monkeypatch)
    write_hopper(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(PAGE)
    message = "install dm-control.*, or copy the file of a machine that has simulated it"
    with caplog.at_level("INFO"), pytest.raises(ModuleNotFoundError, match=message):
        load_hopper(tmp_path, 40, 20)
    assert f"The cache {path} is broken and is made again" in caplog.text


def test_a_legacy_file_of_torchvision_is_not_opened(tmp_path, monkeypatch):
    # Where these two are there, torchvision reads them in place of the files that were checked.
    data_set, folder, marker = DATA_SETS["mnist"], tmp_path / "data", tmp_path / "marker"
    data_set.write(monkeypatch, folder)
    (folder / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (folder / "MNIST" / "processed" / name).write_bytes(threat(marker))
    all_batches(data_set.build(folder))
    assert not marker.exists()


def test_the_threat_is_real(tmp_path):
    pickle.loads(threat(tmp_path / "marker")).close()
    assert (tmp_path / "marker").exists()


def test_no_data_set_is_left_out(tmp_path):
    exported = [getattr(datamodules, name) for name in datamodules.__all__]
    of_files = [cls for cls in exported if "data_dir" in signature(cls).parameters]
    tried = {type(data_set.build(tmp_path)) for data_set in DATA_SETS.values()}
    assert tried == {cls for cls in of_files if not isabstract(cls)}
