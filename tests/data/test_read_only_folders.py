"""A folder that cannot be written to: enough for reading, and a clear error where it is not."""

import pytest
import torch

from datamodules.hopper_simulator import load_hopper
from tests.helpers.data_sets import DATA_SETS, DOWNLOADED, all_batches, same
from tests.helpers.read_only import read_only

NOWHERE = "http://127.0.0.1:9/"


@pytest.mark.parametrize("name", DATA_SETS)
def test_complete_data_are_read(tmp_path, monkeypatch, name):
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    data_set.write(monkeypatch, folder)
    expected = all_batches(data_set.build(folder, tmp_path / "first"))
    with read_only(folder):
        assert same(all_batches(data_set.build(folder, tmp_path / "cache")), expected)
        if name in DOWNLOADED:
            data = data_set.build(folder, tmp_path / "cache", download=True)
            assert same(all_batches(data), expected)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_says_what_to_do(tmp_path, monkeypatch, name):
    data_set, folder = DATA_SETS[name], tmp_path / "data"
    data_set.write(monkeypatch, folder)
    data_set.move(monkeypatch, NOWHERE)
    (folder / data_set.files[-1]).unlink()
    message = (
        "to download .* Permission denied.* set `--data.data_dir` to a folder that can be wri"
    )
    data = data_set.build(folder, tmp_path / "cache", download=True)
    with read_only(folder), pytest.raises(OSError, match=message):
        data.prepare_data()
    data = data_set.build(tmp_path / "parent" / "new", tmp_path / "cache", download=True)
    (tmp_path / "parent").mkdir()
    with read_only(tmp_path / "parent"), pytest.raises(OSError, match=message):
        data.prepare_data()


@pytest.mark.parametrize("name", ["physionet", "physionet_unpacked"])
def test_a_cache_is_read_but_not_made(tmp_path, monkeypatch, name):
    data_set, folder, cache = DATA_SETS[name], tmp_path / "data", tmp_path / "cache"
    data_set.write(monkeypatch, folder)
    cache.mkdir()
    message = "Expected to write the cache .*, but got: .* Set `--data.cache_dir` to a folder that"
    with read_only(folder, cache), pytest.raises(OSError, match=message):
        data_set.build(folder, cache).prepare_data()
    expected = all_batches(data_set.build(folder, cache))
    with read_only(folder, cache):
        assert same(all_batches(data_set.build(folder, cache)), expected)


def test_trajectories_are_read_but_not_kept(tmp_path, monkeypatch):
    states = torch.ones(5, 20, 14)
    monkeypatch.setattr("datamodules.hopper_simulator.simulate_hopper", lambda *_: states)
    message = "Expected to write the cache .*, but got: .* Set `--data.cache_dir` to a folder that"
    with read_only(tmp_path), pytest.raises(OSError, match=message):
        load_hopper(tmp_path, 5, 20)
    load_hopper(tmp_path, 5, 20)
    with read_only(tmp_path):
        assert torch.equal(load_hopper(tmp_path, 5, 20), states)
