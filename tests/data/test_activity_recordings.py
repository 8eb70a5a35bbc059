import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch

from datamodules import activity_recordings
from datamodules.activity_recordings import (
    CLASSES,
    TAGS,
    Recording,
    download_activity,
    find_file,
    merge_rows,
    read_rows,
)
from tests.helpers.activity_files import LABELS, row, tiny_rows, write_activity
from tests.helpers.http_server import serving


def merged(folder: Path, *rows: str) -> dict[str, Recording]:
    return merge_rows(read_rows(write_activity(folder, rows)))


def test_rows_at_one_rounded_time_are_merged(tmp_path):
    recording = merged(
        tmp_path,
        row(ticks=0, position=(1, 2, 3)),
        row(ticks=140_000, tag=TAGS[2], position=(4, 5, 6), label="lying"),
        row(ticks=60_000, tag=TAGS[2], position=(6, 7, 8), label="sitting"),
        row(ticks=149_999, tag=TAGS[3], position=(7, 8, 9), label="falling"),
        row(ticks=150_200, tag=TAGS[0], position=(0, 0, 1)),
    )["A01"]
    assert recording.steps.tolist() == [0, 1, 2]
    assert recording.mask.view(3, 4, 3).all(2).tolist() == [
        [True, False, False, False],
        [False, False, True, True],
        [True, False, False, False],
    ]
    assert recording.mask.view(3, 4, 3).any(2).sum() == 4
    assert recording.values[0].tolist() == [1, 2, 3] + [0] * 9
    assert recording.values[1].tolist() == [0] * 6 + [5, 6, 7, 7, 8, 9]
    # The label of the last row in time: walking, falling, walking.
    assert recording.labels.tolist() == [0, 1, 0]


def test_order_of_rows_and_recordings_is_no_matter(tmp_path):
    rows = tiny_rows(3, 30)
    first, other = merged(tmp_path / "a", *rows), merged(tmp_path / "b", *rows[::-1])
    assert list(first) == list(other) == ["A01", "A02", "A03"]
    for name in first:
        assert all(torch.equal(a, b) for a, b in zip(first[name], other[name], strict=True))


def test_labels_are_merged_to_seven_classes(tmp_path):
    rows = [row(ticks=i * 1_000_000, label=label) for i, label in enumerate(LABELS)]
    labels = merged(tmp_path, *rows)["A01"].labels.tolist()
    assert dict(zip(LABELS, labels, strict=True)) == {
        "walking": 0,
        "falling": 1,
        "lying": 2,
        "lying down": 2,
        "sitting": 3,
        "sitting down": 3,
        "standing up from lying": 4,
        "standing up from sitting": 4,
        "standing up from sitting on the ground": 4,
        "standing up from sit on grnd": 4,
        "on all fours": 5,
        "sitting on the ground": 6,
    }
    assert len(CLASSES) == 7


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (row(label="dancing"), "one of the labels walking, .* in line 2 of .*, but got 'dancing'"),
        (row(tag="010"), "one of the tags 010-000-024-033, .* in line 2 of .*, but got '010'"),
        (
            row(position=(1, 2, float("nan"))),
            "a finite number as z in line 2 of .*, but got 'nan'",
        ),
        (
            row(position=(float("inf"), 2, 3)),
            "a finite number as x in line 2 of .*, but got 'inf'",
        ),
        (row().replace("6337", "x"), "a finite number as ticks in line 2 of .*, but got 'x"),
        (row() + ",more", "Expected 8 fields between commas in line 2 of"),
        ("", "Expected 8 fields between commas in line 2 of"),
    ],
)
def test_broken_rows_raise(tmp_path, broken, message):
    with pytest.raises(ValueError, match=message):
        merged(tmp_path, row(), broken, row(ticks=1_000_000))


def test_an_empty_file_raises(tmp_path):
    with pytest.raises(ValueError, match=r"Expected rows in .*JSI\.txt, but it is empty"):
        merged(tmp_path)


def test_the_file_is_found(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"ConfLongDemo_JSI\.txt, but .* Set `--data.downl"
    ):
        find_file(tmp_path, None)
    first = write_activity(tmp_path, name="ConfLongDemo_JSI.first600.txt")
    assert find_file(tmp_path, None) == first
    with pytest.raises(FileNotFoundError, match=r"other\.txt, but it does not exist"):
        find_file(tmp_path, "other.txt")
    second = write_activity(tmp_path, name="ConfLongDemo_JSI.more.txt")
    message = "Expected one file .* but got ConfLongDemo_JSI.first600.txt, ConfLongDemo_JSI.more"
    with pytest.raises(ValueError, match=message):
        find_file(tmp_path, None)
    assert find_file(tmp_path, second.name) == second
    whole = write_activity(tmp_path)
    assert find_file(tmp_path, None) == whole


def zip_bytes(*names: str, content: str) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


TEXT = "\n".join(tiny_rows()) + "\n"
NAME = "ConfLongDemo_JSI.txt"
ZIPPED = zip_bytes("README", f"data/{NAME}", content=TEXT)


def download(folder: Path, monkeypatch, contents: dict[str, bytes], n_rows: int = 600) -> None:
    monkeypatch.setattr(activity_recordings, "N_ROWS", n_rows)
    with serving(contents) as address:
        monkeypatch.setattr(activity_recordings, "URLS", (f"{address}a.zip", f"{address}a.txt"))
        download_activity(folder / NAME)


@pytest.mark.parametrize(
    "contents",
    [
        {"a.zip": ZIPPED},
        {"a.txt": TEXT.encode()},
        {"a.zip": b"no zip", "a.txt": TEXT.encode()},
        {"a.zip": ZIPPED[:-50], "a.txt": TEXT.encode()},
        {"a.zip": zip_bytes("other.txt", content=TEXT), "a.txt": TEXT.encode()},
        {"a.zip": zip_bytes(NAME, f"../{NAME}", content=TEXT), "a.txt": TEXT.encode()},
        {"a.zip": zip_bytes(NAME, content=TEXT[:500]), "a.txt": TEXT.encode()},
    ],
)
def test_download_from_either_address(tmp_path, monkeypatch, contents):
    download(tmp_path / "new", monkeypatch, contents)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [NAME]
    assert (tmp_path / "new" / NAME).read_text() == TEXT
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("contents", "n_rows", "message"),
    [
        ({}, 600, "from one of 2 addresses, but got: .* 404 .* 404 "),
        ({"a.zip": ZIPPED}, 601, "Expected 601 rows in the downloaded .*, but got 600"),
        ({"a.txt": TEXT.replace("lying", "flying").encode()}, 600, "Expected one of the labels"),
        ({"a.zip": ZIPPED[:-50]}, 600, "to be a zip archive, but got"),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, contents, n_rows, message):
    with pytest.raises(OSError, match=message):
        download(tmp_path, monkeypatch, contents, n_rows)
    assert not list(tmp_path.iterdir())


def test_the_official_addresses():
    assert all(url.startswith("https://archive.ics.uci.edu/") for url in activity_recordings.URLS)
