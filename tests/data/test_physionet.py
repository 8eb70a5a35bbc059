from pathlib import Path

import pytest
import torch

from datamodules.physionet import PhysioNetDataModule
from datamodules.physionet_records import PARAMETERS
from steer_lightning.nn.series import check_series
from tests.helpers.data_sets import DATA_SETS
from tests.helpers.http_server import serving
from tests.helpers.physionet_files import (
    FIRST_ID,
    outcomes_bytes,
    tiny_records,
    write_physionet,
)

DATA_SET = DATA_SETS["physionet2012"]
module = DATA_SET.build
HR = PARAMETERS.index("HR")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    DATA_SET.write(monkeypatch, tmp_path)
    return tmp_path


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(("split", "n"), [("train", 24), ("val", 8), ("test", 8)])
def test_batches(folder, split, n):
    data = module(folder)
    data.prepare_data()
    data.setup()
    loader = getattr(data, f"{split}_dataloader")()
    assert len(loader.dataset) == n
    for batch in loader:
        check_series(batch)
        assert batch.values.shape == (8, batch.lengths.max(), data.n_features)
        assert torch.equal(batch.mask, batch.target_mask)
        assert set(batch.labels.tolist()) <= set(range(data.num_classes))
        assert not batch.times[:, 0].any()
        assert batch.times.max() <= 1.0


def test_patients_keep_their_labels_and_values(folder):
    data = module(folder)
    data.setup()
    series, parts = data._store
    train = series.values[parts["train"]][..., HR]
    assert (float(train.min()), float(train.max())) == (0.0, 1.0)
    raw = module(folder).load()[0]
    numbers = raw.values[..., HR].amax(1).round().long()  # The heart rate numbers the patients.
    assert numbers.tolist() == list(range(40))
    for patient, label in zip(numbers.tolist(), raw.labels.tolist(), strict=True):
        assert label == (FIRST_ID + patient) % 2
    low, high = float(numbers[parts["train"]].min()), float(numbers[parts["train"]].max())
    last = series.values[torch.arange(40), series.lengths - 1, HR]
    torch.testing.assert_close(last, (numbers - low) / (high - low))


def test_outcomes_are_downloaded_beside_an_unpacked_folder(folder, monkeypatch):
    target = folder / "new"
    write_physionet(target, form="folder")
    (target / "Outcomes-a.txt").unlink()
    with serving(DATA_SET.pack(folder)) as address:
        DATA_SET.move(monkeypatch, address)
        module(target, download=True).prepare_data()
    assert {path.name for path in target.iterdir()} == {"set-a", "Outcomes-a.txt"}
    module(target).setup()


def test_dropped_records_are_named_once_a_run(folder):
    records = tiny_records(40)
    for number in (FIRST_ID + 3, FIRST_ID + 8):
        records[number] = b"Time,Parameter,Value\n00:00,Weight,-1\n"
    write_physionet(folder, records)
    for _ in range(2):
        data = module(folder)
        data.prepare_data()
        with pytest.warns(UserWarning, match="but 2 of 40 have none .* 132542, 132547.") as caught:
            data.setup()
        assert len(caught) == 1
        assert len(data._store[0].lengths) == 38


def test_a_set_of_one_label_warns(folder):
    (folder / "Outcomes-a.txt").write_bytes(outcomes_bytes(dict.fromkeys(tiny_records(40), 1)))
    message = "Expected both labels in the test set, but all 8 are 1: the area under the curve"
    with pytest.warns(UserWarning, match=message):
        module(folder).setup("test")


@pytest.mark.real_data
def test_real_files(data_dir):
    source = data_dir / "physionet2012"
    if not source.is_dir():
        pytest.skip(f"no PhysioNet 2012: {source} does not exist")
    before = content(source)
    data = PhysioNetDataModule(str(source))
    data.prepare_data()
    data.setup()
    assert content(source) == before
    raw = data.load()[0]
    assert raw.values.shape == (4000, 203, 41)
    assert int(raw.labels.sum()) == 554
    # Counted line by line: pairs of minute and parameter, and minutes, with something known.
    assert int(raw.mask.sum()) == 1_748_013
    assert (int(raw.lengths.sum()), int(raw.lengths.eq(1).sum())) == (299_264, 3)
    assert raw.values[..., PARAMETERS.index("MechVent")].max() == 1.0
    assert float(raw.values[..., PARAMETERS.index("Temp")].min()) == pytest.approx(-17.8)
    unions, longest = [], []
    for batch in data.train_dataloader():
        check_series(batch)
        unions.append(len(batch.times[batch.valid].unique()))
        longest.append(int(batch.lengths.max()))
    # What makes walking each patient's own times worth while.
    assert sum(unions) / len(unions) == pytest.approx(2081, rel=0.03)
    assert sum(longest) / len(longest) == pytest.approx(137, rel=0.03)
