import collections
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.safe_pickle import load_pickle
from tests.helpers.imagenet_files import python2_pickle


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def load(tmp_path: Path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    return load_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_plain_contents_come_back(tmp_path, protocol, core):
    content = {
        "text": "grün",
        "numbers": [1, -2, 3.5, True, None, (2**70,)],
        "data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i8"),
        "flags": np.array([True, False]),
        "scalar": np.float64(0.25),
        "bytes": b"\x00\xff",
    }
    written = pickle.dumps(content, protocol=protocol)
    if protocol < 4:  # Later protocols count the bytes of a name.
        written = written.replace(b"numpy._core", core)
    got = load(tmp_path, written)
    assert list(got) == list(content)
    for name, expected in content.items():
        if isinstance(expected, np.ndarray):
            assert got[name].dtype == expected.dtype
            np.testing.assert_array_equal(got[name], expected)
        else:
            assert got[name] == expected


def test_files_of_python_2_come_back(tmp_path):
    data = np.arange(256, dtype=np.uint8).repeat(2).reshape(2, 256)
    got = load(tmp_path, python2_pickle(data, [7, 1000]))
    np.testing.assert_array_equal(got["data"], data)
    assert got["labels"] == [7, 1000]


def test_an_array_alone_comes_back(tmp_path):
    np.testing.assert_array_equal(load(tmp_path, pickle.dumps(np.arange(3))), np.arange(3))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path, protocol):
    victim = tmp_path / "victim"
    content = pickle.dumps({"data": Call(open, str(victim), "w")}, protocol=protocol)
    with pytest.raises(ValueError, match=r"but it asks for \w*\.open\. Do not open it otherwise"):
        load(tmp_path, content)
    assert not victim.exists()
    pickle.loads(content)["data"].close()  # The file is a real threat.
    assert victim.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Call(eval, "1"), "builtins.eval"),
        (Call(getattr, 1, "real"), "builtins.getattr"),
        (Call(np.load, "x"), "numpy.load"),
        (np.int64, "numpy.int64"),
        (collections.OrderedDict(), "collections.OrderedDict"),
        (np.dtype("O"), r"numpy.dtype\('O8'\)"),
        (np.array([{}], dtype=object), r"numpy.dtype\('O8'\)"),
        (np.zeros(2, dtype="u1,u2"), r"numpy.dtype\('V3'\)"),
        (np.array(["text"]), r"numpy.dtype\('U4'\)"),
        (Call(__import__("_codecs").encode, "x", "rot13"), "_codecs.encode to 'rot13'"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, value, name):
    with pytest.raises(ValueError, match=f"text and numpy arrays, but it asks for {name}. Do not"):
        load(tmp_path, pickle.dumps({"data": value}, protocol=4))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (b"c_codecs\nencode\n", "asks for a change of _Encode"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "asks for a change of _Reconstruct"),
        (b"cnumpy.core.multiarray\nscalar\n", "asks for a change of _Scalar"),
        (b"cnumpy\nndarray\n", "reading it failed: TypeError"),
        (b"cnumpy\ndtype\n", "reading it failed: TypeError"),
    ],
)
def test_stand_ins_cannot_be_changed(tmp_path, target, message):
    # Of something without `__setstate__`, this would set the attribute `value` to 1.
    with pytest.raises(ValueError, match=message):
        load(tmp_path, b"\x80\x02" + target + b"N}U\x05valueK\x01s\x86b.")


def test_broken_files_raise(tmp_path):
    content = pickle.dumps({"data": np.arange(1000), "labels": [1, 2]}, protocol=3)
    for broken in (b"", b"<html>", content[:-1], content[:500], content[40:]):
        with pytest.raises(ValueError, match=r"file to be a complete pickle, .* Unpack or downl"):
            load(tmp_path, broken)


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "nothing")
