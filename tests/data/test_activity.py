import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch

from datamodules import activity_recordings
from datamodules.activity import HumanActivityDataModule
from datamodules.activity_recordings import (
    CLASSES,
    FILE_NAME,
    TAGS,
    Recording,
    find_file,
    merge_rows,
    read_rows,
)
from steer_lightning.nn.series import check_series
from tests.helpers.activity_files import LABELS, row, tiny_rows, write_activity
from tests.helpers.data_sets import DATA_SETS, same
from tests.helpers.http_server import serving

module = DATA_SETS["person_activity"].build
CLASS_OF_LABEL = torch.tensor([c for c, labels in enumerate(CLASSES.values()) for _ in labels])


@pytest.fixture
def folder(tmp_path) -> Path:
    write_activity(tmp_path)
    return tmp_path


@pytest.mark.parametrize("split", ["window", "recording"])
def test_batches(folder, split):
    data = module(folder, split=split)
    data.prepare_data()
    data.setup()
    # 120 points of each of 5 recordings give 11 windows of 20 points, 10 apart.
    sizes = {"window": [40, 4, 11], "recording": [33, 11, 11]}[split]
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(loader.dataset) for loader in loaders] == sizes
    points: list[set[tuple[int, int]]] = [set(), set(), set()]
    for loader, seen in zip(loaders, points, strict=True):
        for batch in loader:
            check_series(batch)
            assert batch.values.shape[1:] == (20, data.n_features)
            assert batch.labels.shape == batch.times.shape
            assert torch.equal(batch.mask, batch.target_mask)
            assert batch.mask.sum(2).eq(3).all()
            # The tiny files have the recording as x, the row as y: label and times belong to it.
            x, y, _ = batch.values.unflatten(2, (4, 3)).sum(2).long().unbind(2)
            assert (y.diff(dim=1) == 1).all()
            assert (x == x[:, :1]).all()
            number = (x + y // 10) % len(LABELS)
            assert torch.equal(batch.labels, CLASS_OF_LABEL[number])
            torch.testing.assert_close(batch.times, (torch.arange(20.0) / 19).expand_as(x))
            seen.update(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    train, _, test = points
    shared = split == "window"  # Random windows overlap, recordings do not.
    assert bool(train & test) is shared
    assert bool({x for x, _ in train} & {x for x, _ in test}) is shared


def test_times_are_scaled_by_the_longest_training_window(tmp_path):
    rows = [
        row(f"A0{number}", TAGS[0], int(1e7 * number * i))
        for number in range(1, 6)
        for i in range(5)
    ]
    write_activity(tmp_path, rows)
    seen = set()
    for seed in range(5):
        data = module(tmp_path, window=5, stride=5, val_size=1, split="recording", seed=seed)
        ends = [data.build(split)[:].times[:, -1] for split in ("train", "val", "test")]
        assert float(ends[0].max()) == 1.0
        # Recording k lasts 4 k seconds; all are divided by the longest of training.
        everything = torch.cat(ends)
        torch.testing.assert_close(
            everything.sort().values / everything.min(), torch.arange(1.0, 6.0)
        )
        seen.add(round(float(everything.max()), 4))
    assert len(seen) > 1


def test_recordings_without_a_whole_window_are_left_out(tmp_path):
    rows = tiny_rows(6, 60) + [row("E05", ticks=300_000 * i) for i in range(19)]
    write_activity(tmp_path, rows)
    assert len(module(tmp_path).load()[0].lengths) == 6 * 5
    with pytest.raises(ValueError, match=r"a recording of 61 points or more in .* has 60"):
        module(tmp_path, window=61).setup()


def test_a_partial_file_is_announced(folder, caplog, monkeypatch):
    with caplog.at_level("INFO"):
        module(folder).setup()
    assert "ConfLongDemo_JSI.txt is partial, 600 of 164860 rows." in caplog.text
    caplog.clear()
    monkeypatch.setattr("datamodules.activity.N_ROWS", 600)
    with caplog.at_level("INFO"):
        module(folder).setup()
    assert not caplog.records


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
    assert all(same(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (row(ticks=10**300), "number of size up to 1e\\+18 as ticks in line 2 of .*, but got '1"),
        (row(label="dancing"), "one of the labels walking, .* in line 2 of .*, but got 'dancing'"),
        (row(tag="010"), "one of the tags 010-000-024-033, .* in line 2 of .*, but got '010'"),
        (row(position=(1, 2, float("nan"))), "number .* as z in line 2 of .*, but got 'nan'"),
    ],
)
def test_broken_rows_raise(tmp_path, broken, message):
    with pytest.raises(ValueError, match=message):
        merged(tmp_path, row(), broken, row(ticks=1_000_000))


def test_the_file_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"_JSI\.txt, but .* Set `--data.downl"):
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
ZIPPED = zip_bytes("README", f"data/{FILE_NAME}", content=TEXT)


@pytest.mark.parametrize(
    ("content", "n_rows", "message"),
    [
        (ZIPPED, 601, "Expected 601 rows in the downloaded .*, but got 600"),
        (zip_bytes(FILE_NAME, content=TEXT.replace("lying", "flying")), 600, "one of the labels"),
        (ZIPPED[:-50], 600, "to be a zip archive, but got"),
        (zip_bytes("other.txt", content=TEXT), 600, "to hold one ConfLongDemo_JSI.txt of at most"),
        (
            zip_bytes(FILE_NAME, f"../{FILE_NAME}", content=TEXT),
            600,
            f"to hold one {FILE_NAME} of",
        ),
    ],
)
def test_what_is_downloaded_is_checked(tmp_path, monkeypatch, content, n_rows, message):
    monkeypatch.setattr(activity_recordings, "N_ROWS", n_rows)
    folder = tmp_path / "new"
    data = module(folder, download=True)
    assert activity_recordings.URL.startswith("https://archive.ics.uci.edu/")
    with serving({"a.zip": content}) as address:
        monkeypatch.setattr(activity_recordings, "URL", f"{address}a.zip")
        with pytest.raises(ValueError, match=message):
            data.prepare_data()
    assert not list(folder.iterdir())
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["window", "recording"])
def test_real_file(data_dir, caplog, split):
    source = data_dir / "person_activity"
    if not source.is_dir():
        pytest.skip(f"no person activity: {source} does not exist")
    with caplog.at_level("INFO"):
        data = HumanActivityDataModule(str(source), split=split)
        data.prepare_data()
        data.setup()
    series, _ = data.load()
    assert ("is partial" in caplog.text) == (len(series.times) < 6000)
    assert data.build("train").tensors.values.shape[1:] == (50, 12)
    assert series.labels.min() == 0
    assert series.labels.max() == 6
    if len(series.times) < 6000:
        # 16,486 rows of three recordings: 5,829, 5,691 and 4,965 points.
        assert len(series.times) == 232 + 226 + 197
        assert float(series.times.max()) == pytest.approx(2.10, abs=0.005)
        assert float(series.mask.mean(dtype=torch.float64)) == pytest.approx(0.25, abs=1e-3)
