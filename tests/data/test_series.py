import itertools

import pytest
import torch
from torch import Tensor

from datamodules.base import keep_batch, seeded_generator
from datamodules.series import SeriesData, SeriesDataModule, choose_points, split_samples
from steer_lightning.nn.series import SeriesBatch, check_series, make_series
from tests.helpers.data_sets import same

LENGTHS = [3, 1, 4, 2, 5]


def store(labels: str = "sample", n: int = 5) -> SeriesBatch:
    """Samples of LENGTHS in turn; every value is the number of its sample."""
    lengths = [LENGTHS[i % 5] for i in range(n)]
    kinds = {
        "sample": [torch.tensor(i) for i in range(n)],
        "time": [torch.full((length,), i) for i, length in enumerate(lengths)],
        "none": None,
    }
    return make_series(
        times=[torch.arange(float(length)) for length in lengths],
        values=[torch.full((length, 2), float(i)) for i, length in enumerate(lengths)],
        masks=[torch.ones(length, 2) for length in lengths],
        labels=kinds[labels],
    )


@pytest.mark.parametrize("labels", ["sample", "time", "none"])
@pytest.mark.parametrize("index", [[0], [1, 3], [4, 0, 2], [0, 1, 2, 3, 4]])
def test_a_batch_is_cut_to_its_longest_sample(labels, index):
    batch = SeriesData(store(labels)).select(index)
    check_series(batch)
    longest = max(LENGTHS[i] for i in index)
    assert batch.values.shape == (len(index), longest, 2)
    assert batch.lengths.tolist() == [LENGTHS[i] for i in index]
    assert batch.values[:, 0, 0].tolist() == index
    if labels == "none":
        assert batch.labels.shape == (len(index), 0)
    else:
        assert batch.labels.reshape(len(index), -1)[:, 0].tolist() == index


def test_a_batch_owns_its_memory():
    data = SeriesData(store())
    batch = data.select([0, 1, 2, 3, 4])
    batch.mask.zero_()
    assert batch.target_mask.any()
    assert data.select([0]).mask.all()


def test_chosen_samples_are_a_set_of_their_own():
    data = SeriesData(store(), torch.tensor([4, 1]))
    assert len(data) == 2
    assert data.__getitems__([1, 0]).labels.tolist() == [1, 4]
    assert data[0].values.shape == (5, 2)


@pytest.mark.parametrize("n", [10, 11, 100])
def test_single_samples_are_split(n):
    parts, again = (split_samples(torch.arange(n), val_size=3, seed=0) for _ in range(2))
    assert (len(parts["test"]), len(parts["val"])) == (round(0.2 * n), 3)
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(n))
    assert same(parts.values(), again.values())
    other = split_samples(torch.arange(n), val_size=3, seed=1)
    assert not torch.equal(other["test"], parts["test"])


def test_the_test_set_does_not_depend_on_val_size_and_is_validated_on_without_one():
    none, small, large = (split_samples(torch.arange(50), size, seed=0) for size in (0, 1, 20))
    assert torch.equal(small["test"], large["test"])
    assert torch.equal(small["val"], large["val"][:1])
    assert torch.equal(none["test"], large["test"])
    assert torch.equal(none["val"], none["test"])
    both = torch.cat([none["train"], none["test"]])
    assert both.sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(("val_size", "n_groups"), [(1, 1), (7, 1), (8, 2), (14, 2), (15, 3)])
def test_groups_are_split_whole(val_size, n_groups):
    groups = torch.arange(10).repeat_interleave(7) * 3
    parts = split_samples(groups, val_size, seed=0)
    sets = [set(groups[parts[split]].tolist()) for split in ("train", "val", "test")]
    assert [len(part) for part in sets] == [8 - n_groups, n_groups, 2]
    assert len(set.union(*sets)) == 10
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(70))


@pytest.mark.parametrize(
    ("groups", "val_size", "message"),
    [
        (torch.arange(10), 8, r"but got 8 of 8 samples, in 8 group\(s\), that are not the test"),
        (torch.arange(3).repeat_interleave(5), 6, r"but got 6 of 10 samples, in 2 group\(s\)"),
        (torch.zeros(9).long(), 1, r"but got 1 of 0 samples, in 0 group\(s\)"),
    ],
)
def test_a_split_that_leaves_nothing_to_train_on_raises(groups, val_size, message):
    with pytest.raises(ValueError, match=message):
        split_samples(groups, val_size, seed=0)


def test_points_are_chosen_with_equal_chances():
    chosen = choose_points(4000, 6, 2, seeded_generator(0, "test"))
    assert chosen.sum(1).eq(2).all()
    # Each of the 15 pairs: 267 expected, with a standard deviation of 16.
    counts = (chosen.long() * 2 ** torch.arange(6)).sum(1).bincount()
    assert (counts > 0).sum() == 15
    assert counts[counts > 0].sub(4000 / 15).abs().max() < 80


class Known(SeriesDataModule):
    """Samples of LENGTHS in turn, in groups of two."""

    n_features = 2

    def __init__(self, series: SeriesBatch | None = None, **arguments) -> None:
        super().__init__(**({"batch_size": 4, "val_size": 4} | arguments))
        self.series = store("sample", 50) if series is None else series
        self.loaded = 0
        self.train = torch.empty(0)

    def load(self):
        self.loaded += 1
        return self.series, torch.arange(len(self.series.lengths)) // 2

    def scale(self, series: SeriesBatch, train: Tensor) -> SeriesBatch:
        self.train = train
        return series._replace(values=series.values + 1000.0 * series.mask)


def labels_of(loader) -> list[int]:
    return [label for batch in loader for label in batch.labels.tolist()]


def test_splits_share_one_store_that_is_loaded_and_scaled_once():
    data = Known()
    data.setup()
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert data.loaded == 1
    assert len({loader.dataset.tensors.values.data_ptr() for loader in loaders}) == 1
    assert sorted(itertools.chain(*map(labels_of, loaders))) == list(range(50))
    assert sorted(labels_of(loaders[0])) == sorted(data.train.tolist())
    for part in map(labels_of, loaders):  # groups of two stay together
        assert {label ^ 1 for label in part} == set(part)
    assert all(loader.collate_fn is keep_batch for loader in loaders)
    for loader in loaders:
        for batch in loader:
            check_series(batch)
            assert torch.equal(batch.values[:, 0, 0], batch.labels + 1000.0)
            assert batch.times.shape[1] == batch.lengths.max()


def test_limit_train_changes_nothing_else():
    whole, limited = Known(), Known(limit_train=6)
    for data in (whole, limited):
        data.setup()
    assert len(labels_of(limited.train_dataloader())) == 6
    assert torch.equal(whole.train, limited.train)
    for loader in ("val_dataloader", "test_dataloader"):
        assert labels_of(getattr(whole, loader)()) == labels_of(getattr(limited, loader)())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_set_that_breaks_the_contract_raises(stage, monkeypatch):
    series = store("sample", 50)
    data = Known(series._replace(times=series.times.flip(1)))
    monkeypatch.setattr("datamodules.series._CHECKED_AT_ONCE", 8)
    message = r"the \w+ set of Known to keep the contract .*, but samples 0 to [37] do not"
    with pytest.raises(ValueError, match=message):
        data.setup(stage)
    data = Known(series._replace(labels=series.labels.float()))
    with pytest.raises(TypeError, match=r"do not\. Expected `labels` to be of torch\.int64"):
        data.setup(stage)
