import zipfile
from pathlib import Path

import pytest
import torch

from steer_lightning.utils.io import load_plain, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("content", [b"<html>404</html>", bytes(1000)])
def test_another_kind_of_file_raises(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=r"a\.pt is broken: torch\.save wrote no"):
        load_plain(path)


def test_a_flipped_bit_in_a_file_of_tensors_raises(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    assert torch.equal(load_plain(path)["x"], torch.zeros(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["x"].any()  # Torch does not compare checksums.
    with pytest.raises(zipfile.BadZipFile, match="the checksum of a/data/0 is wrong"):
        load_plain(path)
