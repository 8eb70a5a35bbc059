import io
import tarfile

import pytest
import torch

from datamodules.physionet_records import (
    DESCRIPTORS,
    PARAMETERS,
    bin_records,
    find_records,
    read_archive,
    read_folder,
    read_outcomes,
    read_records,
)
from tests.helpers.data_sets import same
from tests.helpers.physionet_files import (
    FIRST_ID,
    OUTCOMES_HEADER,
    accept_physionet,
    outcomes_bytes,
    record_text,
    tar_bytes,
    tiny_records,
    write_physionet,
)

N = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    accept_physionet(monkeypatch, N)
    write_physionet(tmp_path, N)
    return tmp_path


def binned(
    *lines: str, time_bin: float = 0.016, keep_unknown: bool = False
) -> dict[tuple[int, str], float]:
    """One record's values by minute, rounded, and parameter, without those of admission."""
    out = bin_records({7: record_text(7, lines)}, {7: 1}, time_bin, "set-a", keep_unknown)
    minutes = (out["times"] * 48 * 60).round().int().tolist()
    return {
        (minutes[row], PARAMETERS[column]): float(out["values"][row, column])
        for row, column in out["mask"].nonzero().tolist()
        if PARAMETERS[column] not in DESCRIPTORS[:4]
    }


def test_a_record_becomes_rows():
    text = record_text(7, ["00:07,HR,73", "01:00,K,4.5", "48:00,HR,80"])
    out = bin_records({7: text}, {7: 1}, 0.016, "set-a")
    assert out["lengths"].tolist() == [4]
    assert out["labels"].tolist() == [1]
    assert out["dropped"].tolist() == []
    torch.testing.assert_close(out["times"] * 48, torch.tensor([0.0, 0.112, 0.992, 48.0]))
    assert out["mask"].sum(1).tolist() == [3, 1, 1, 1]  # At 0: age, sex, type of the unit.
    assert out["values"][0, PARAMETERS.index("Age")] == 47.0
    assert out["values"][3, PARAMETERS.index("HR")] == 80.0
    assert not out["values"][~out["mask"]].any()


def test_minus_one_means_unknown_for_descriptors_alone_or_is_kept():
    lines = ("00:00,Weight,-1", "02:00,Weight,80", "04:00,Temp,-1")
    known = {(120, "Weight"): 80.0, (240, "Temp"): -1.0}
    assert binned(*lines) == known
    kept = binned(*lines, keep_unknown=True)
    assert kept.items() >= known.items()
    assert kept[0, "Weight"] == -1.0


def test_values_of_one_bin_are_averaged():
    values = binned("01:00,HR,70", "01:00,HR,80", "01:00,K,4", "01:00,HR,90", "01:01,HR,10")
    assert values == {(60, "HR"): 80.0, (60, "K"): 4.0, (61, "HR"): 10.0}
    wide = binned("00:40,HR,70", "01:20,HR,80", "01:31,HR,90", "47:59,HR,1", time_bin=1.0)
    assert wide == {(60, "HR"): 75.0, (120, "HR"): 90.0, (2880, "HR"): 1.0}
    assert binned("47:59,HR,1", time_bin=5.0) == {(2880, "HR"): 1.0}  # not past the end


def test_default_bins_keep_all_minutes_apart():
    lines = [f"{minute // 60:02d}:{minute % 60:02d},HR,{minute}" for minute in range(2881)]
    out = bin_records({7: record_text(7, lines)}, {7: 0}, 0.016, "set-a")
    assert out["lengths"].tolist() == [2881]
    assert out["times"].diff().min() > 0


def test_order_of_lines_is_no_matter():
    lines = ["05:00,HR,70", "01:00,K,4", "05:00,HR,80", "00:30,HR,90"]
    first, other = (
        bin_records({7: record_text(7, part)}, {7: 0}, 0.016, "") for part in (lines, lines[::-1])
    )
    assert same(first.values(), other.values())
    assert first["times"].diff().min() > 0


def test_records_with_no_observation_are_dropped():
    empty = b"Time,Parameter,Value\n00:00,RecordID,8\n00:00,Weight,-1\n"
    contents = {7: record_text(7), 8: empty, 9: record_text(9), 10: b"Time,Parameter,Value\n"}
    out = bin_records(contents, {7: 0, 8: 1, 9: 1, 10: 0}, 0.016, "set-a")
    assert out["dropped"].tolist() == [8, 10]
    assert out["lengths"].tolist() == [1, 1]
    assert out["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00:07,HR,7x", "a finite number .* as Value in line 9 of x: 7.txt, but got '7x'"),
        ("00:07,Pulse,7", "of the 41 parameters or RecordID in line 9 of x: 7.txt, but got 'P"),
        ("48:01,HR,7", "a time from 00:00 to 48:00 in line 9 of x: 7.txt, but got '48:01'"),
        ("00:07,HR", "Expected 3 fields of .* in line 9 of x: 7.txt, but got '00:07,HR'"),
        ("00:00,RecordID,8", "Expected RecordID 7 in line 9 of x: 7.txt, but got .8"),
    ],
)
def test_broken_lines_raise(line, message):
    content = record_text(7, ["00:05,HR,70", line, "00:09,HR,70"])
    with pytest.raises(ValueError, match=message):
        bin_records({7: content}, {7: 0}, 0.016, "x")


def test_archive_and_folder_agree(folder, tmp_path):
    other = tmp_path / "unpacked"
    write_physionet(other, N, form="folder")
    (other / "set-a" / "README").write_text("left alone")
    first, second = (read_records(place, time_bin=0.016) for place in (folder, other))
    assert first["lengths"].tolist() == [2 + 1 + i % 4 for i in range(N)]
    assert same(first.values(), second.values())


def test_order_in_the_archive_is_no_matter(folder):
    content = dict(reversed(tiny_records(N).items()))
    (folder / "set-a.tar.gz").write_bytes(
        tar_bytes({f"./set-a/{number}.txt": text for number, text in content.items()})
    )
    assert list(read_archive(folder / "set-a.tar.gz")) == sorted(content)


def test_the_archive_comes_before_the_folder(folder):
    (folder / "set-a").mkdir()
    assert find_records(folder)[0].name == "set-a.tar.gz"
    (folder / "set-a.tar.gz").unlink()
    assert find_records(folder)[0].name == "set-a"


FOREIGN = ("../1.txt", "set-a/../../1.txt", "/set-a/1.txt", "set-a/one.txt", "other/1.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [*((name, b"content") for name in FOREIGN), ("set-a/1.txt", bytes(2**20 + 1))],
)
def test_a_foreign_or_large_member_is_refused(folder, name, content):
    path = folder / "set-a.tar.gz"
    path.write_bytes(tar_bytes({"set-a/5.txt": b"", name: content}))
    before = sorted(folder.parent.rglob("*"))
    message = f"small files set-a/<RecordID>.txt alone, but got '{name}' .{len(content)} bytes.;"
    with pytest.raises(ValueError, match=message):
        read_archive(path)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"5"])
def test_a_link_or_device_is_refused(folder, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("set-a/1.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    (folder / "set-a.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"alone, but got 'set-a/1\.txt'"):
        read_archive(folder / "set-a.tar.gz")


def test_another_number_of_records_raises(folder, tmp_path):
    write_physionet(tmp_path / "few", N - 1)
    write_physionet(tmp_path / "many", N + 1, form="folder")
    with pytest.raises(ValueError, match=r"Expected 6 records in .*few/set-a\.tar\.gz, but got 5"):
        read_archive(tmp_path / "few" / "set-a.tar.gz")
    with pytest.raises(ValueError, match=r"Expected 6 records in .*many/set-a, but got 7\."):
        read_folder(tmp_path / "many" / "set-a")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,6,1,5,-1,0"] * 6, "of 6 different records in .*, but got 6 lines for 1 records"),
        ([f"{i},6,1,5,-1,0" for i in range(5)], "but got 5 lines for 5 records"),
        (["1,6,1,5,-1,2"], "Expected 0 or 1 as In-hospital_death in line 2 of .*, but got '2'"),
    ],
)
def test_broken_outcomes_raise(folder, lines, message):
    path = folder / "Outcomes-a.txt"
    path.write_text("\n".join([OUTCOMES_HEADER, *lines]))
    with pytest.raises(ValueError, match=message):
        read_outcomes(path)


def test_outcomes_of_other_patients_raise(folder):
    numbers = range(FIRST_ID + 1, FIRST_ID + 1 + N)
    (folder / "Outcomes-a.txt").write_bytes(outcomes_bytes(dict.fromkeys(numbers, 0)))
    message = f"to be of the same records, but 2 are in one only, such as {FIRST_ID}"
    with pytest.raises(ValueError, match=message):
        read_records(folder, time_bin=0.016)
