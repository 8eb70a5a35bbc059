from pathlib import Path

import pytest
import torch

from datamodules import activity_recordings
from datamodules.activity import HumanActivityDataModule
from datamodules.activity_recordings import CLASSES, TAGS
from steer_lightning.nn.series import check_series
from tests.helpers.activity_files import LABELS, row, tiny_rows, write_activity
from tests.helpers.http_server import serving

CLASS_OF_LABEL = torch.tensor([c for c, labels in enumerate(CLASSES.values()) for _ in labels])


@pytest.fixture
def folder(tmp_path) -> Path:
    write_activity(tmp_path)
    return tmp_path


def module(folder: Path, **arguments) -> HumanActivityDataModule:
    sizes = {"window": 20, "stride": 10, "val_size": 4, "batch_size": 8}
    return HumanActivityDataModule(str(folder), **(sizes | arguments))


@pytest.mark.parametrize("split", ["window", "recording"])
def test_batches(folder, split):
    data = module(folder, split=split)
    data.prepare_data()
    data.setup()
    # 120 points of each of 5 recordings give 11 windows of 20 points, 10 apart.
    sizes = {"window": [40, 4, 11], "recording": [33, 11, 11]}[split]
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(loader.dataset) for loader in loaders] == sizes
    for loader in loaders:
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


def points(loader) -> set[tuple[int, int]]:
    """Recording and row of every point of a set."""
    return {
        (int(x), int(y))
        for batch in loader
        for x, y, _ in batch.values.unflatten(2, (4, 3)).sum(2).flatten(0, 1).tolist()
    }


def test_random_windows_share_points_and_recordings_do_not(folder):
    for split, shared in (("window", True), ("recording", False)):
        data = module(folder, split=split)
        data.setup()
        train, test = points(data.train_dataloader()), points(data.test_dataloader())
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
        data.setup()
        ends = [
            data.build(split).tensors.times[data.build(split).chosen][:, -1]
            for split in ("train", "val", "test")
        ]
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
    with pytest.raises(
        ValueError, match=r"Expected a recording of 61 points or more in .* has 60"
    ):
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


def test_a_missing_file_is_downloaded_in_prepare_data_only(tmp_path, monkeypatch):
    rows = tiny_rows()
    monkeypatch.setattr(activity_recordings, "N_ROWS", len(rows))
    with serving({"a.txt": "\n".join(rows).encode()}) as address:
        monkeypatch.setattr(activity_recordings, "URLS", (f"{address}a.txt",))
        for step in (module(tmp_path).prepare_data, module(tmp_path, download=True).setup):
            with pytest.raises(FileNotFoundError, match=r"Set `--data\.download true`, or"):
                step()
        module(tmp_path, download=True).prepare_data()
    module(tmp_path).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "person"}, "Expected `split` to be one of .*, but got 'person'"),
        ({"window": 1}, "Expected `window` to be at least 2, but got 1"),
        ({"stride": 0}, "Expected `stride` to be at least 1, but got 0"),
    ],
)
def test_arguments_out_of_range_raise(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(folder, **arguments)


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
