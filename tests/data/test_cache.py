from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from datamodules.cache import cached_tensors
from tests.helpers.threats import Threat


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(value: float = 1.0):
    return {"x": torch.full((3,), value), "y": torch.tensor([True])}


def never():
    pytest.fail("The cache is there.")


def test_tensors_are_made_once(tmp_path):
    path = tmp_path / "cache" / "a.pt"
    first = cached_tensors(path, ["x", "y"], make)
    again = cached_tensors(path, ["x", "y"], never)
    assert all(torch.equal(first[name], again[name]) for name in ("x", "y"))
    assert names(path.parent) == ["a.pt"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"broken"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: torch.save({"x": torch.zeros(1)}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(Path("not a tensor"), path),
    ],
)
def test_a_broken_cache_is_made_again(tmp_path, damage, caplog):
    path = tmp_path / "a.pt"
    cached_tensors(path, ["x", "y"], make)
    damage(path)
    with caplog.at_level("INFO"):
        assert cached_tensors(path, ["x", "y"], lambda: make(2.0))["x"][0] == 2.0
    assert f"The cache {path} is broken and is made again." in caplog.messages
    assert cached_tensors(path, ["x", "y"], never)["x"][0] == 2.0


def test_no_code_in_a_cache_is_run(tmp_path):
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    torch.save({"x": Threat(marker), "y": torch.ones(1)}, path)
    assert cached_tensors(path, ["x", "y"], make)["x"].tolist() == [1.0] * 3
    assert names(tmp_path) == ["a.pt"]


def test_a_cache_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("")
    message = "Expected to write the cache .*a.pt, but got: .* Set `--data.cache_dir` to a folder"
    with pytest.raises(OSError, match=message):
        cached_tensors(tmp_path / "file" / "a.pt", ["x"], make)


def test_two_processes_make_one_cache_at_once(tmp_path):
    context = get_context("fork")
    barrier, path = context.Barrier(2), tmp_path / "a.pt"

    def slowly():
        barrier.wait(timeout=20)
        return make()

    processes = [
        context.Process(target=cached_tensors, args=(path, ["x", "y"], slowly)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert names(tmp_path) == ["a.pt"]
    assert cached_tensors(path, ["x", "y"], never)["x"].tolist() == [1.0] * 3
