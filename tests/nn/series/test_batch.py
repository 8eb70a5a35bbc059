import pytest
import torch

from steer_lightning.nn.series import SeriesBatch, check_series, keep_times, make_series

NAN = float("nan")


def good() -> SeriesBatch:
    """Two samples, of three times and of one, two features."""
    return make_series(
        times=[torch.tensor([0.0, 0.5, 0.75]), torch.tensor([0.25])],
        values=[torch.arange(6.0).view(3, 2), torch.ones(1, 2)],
        masks=[torch.tensor([[1, 1], [0, 1], [1, 0]]), torch.tensor([[1, 0]])],
        target_masks=[torch.tensor([[0, 0], [1, 1], [0, 0]]), torch.tensor([[1, 0]])],
        labels=[torch.tensor([2, 0, 1]), torch.tensor([4])],
    )


def changed(part: str, index, value) -> SeriesBatch:
    """A good batch with one entry of one part changed."""
    tensor = getattr(good(), part).clone()
    tensor[index] = value
    return good()._replace(**{part: tensor})


def test_samples_are_padded():
    batch = good()
    check_series(batch)
    assert batch.times.tolist() == [[0.0, 0.5, 0.75], [0.25, 0.25, 0.25]]
    assert batch.values.tolist() == [
        [[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]],
        [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    ]
    assert batch.mask.tolist() == [[[1, 1], [0, 1], [1, 0]], [[1, 0], [0, 0], [0, 0]]]
    assert batch.target_mask.tolist() == [[[0, 0], [1, 1], [0, 0]], [[1, 0], [0, 0], [0, 0]]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.labels.tolist() == [[2, 0, 1], [4, -1, -1]]
    assert batch.valid.tolist() == [[True] * 3, [True, False, False]]


def test_reconstruction_is_the_default_and_labels_are_optional():
    times, ones = [torch.arange(2.0)], [torch.ones(2, 1)]
    batch = make_series(times, ones, ones)
    check_series(batch)
    assert torch.equal(batch.mask, batch.target_mask)
    assert (batch.labels.shape, batch.labels.dtype) == ((1, 0), torch.int64)
    labelled = make_series(times * 2, ones * 2, ones * 2, labels=[torch.tensor(3)] * 2)
    check_series(labelled)
    assert labelled.labels.tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_get_the_dtype_of_the_values_and_what_is_not_seen_may_be_anything(dtype, mask_dtype):
    values = torch.tensor([[1.0, NAN], [NAN, 2.0]], dtype=dtype)
    batch = make_series([torch.arange(2.0)], [values], [values.isfinite().to(mask_dtype)])
    check_series(batch)
    assert batch.values.tolist() == [[[1.0, 0.0], [0.0, 2.0]]]
    assert batch.mask.dtype == batch.target_mask.dtype == dtype


@pytest.mark.parametrize("times", [[], [torch.arange(2.0), torch.empty(0)]])
def test_nothing_to_pad_raises(times):
    message = r"Expected one or more samples of one or more times, but got the lengths \["
    with pytest.raises(ValueError, match=message):
        make_series(times, [torch.ones(len(t), 1) for t in times], times)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (tuple(good()), "Expected a SeriesBatch, but got tuple"),
        (good()._replace(times=good().times.long()), "Expected `times` to be floating, but got"),
        (good()._replace(values=good().values.int()), "Expected `values` to be floating, but got"),
        (good()._replace(mask=good().mask.bool()), "Expected `mask` to be of torch.float32, but"),
        (good()._replace(lengths=good().lengths.int()), "Expected `lengths` to be of torch.int64"),
        (good()._replace(labels=good().labels.float()), "Expected `labels` to be of torch.int64"),
        (good()._replace(times=torch.zeros(2, 4)), r"Expected times \(B, T\), values \(B, T, D\)"),
        (good()._replace(values=torch.zeros(2, 3)), r"Expected times \(B, T\), values \(B, T, D"),
        (good()._replace(lengths=torch.ones(3).long()), r"and lengths \(B,\), but got \(2, 3\)"),
        (good()._replace(mask=torch.ones(2, 3, 1)), "Expected `mask` of zeros and ones"),
        (changed("target_mask", (0, 0, 0), 0.5), "Expected `target_mask` of zeros and ones"),
        (good()._replace(labels=torch.zeros(2, 2).long()), "Expected labels of samples"),
        (changed("lengths", 0, 4), "Expected lengths from 1 to T = 3, but got"),
        (changed("lengths", 1, 0), "Expected lengths from 1 to T = 3, but got"),
        (changed("times", (0, 1), NAN), "Expected finite times, but not so in sample 0 of"),
        (changed("values", (1, 0, 0), NAN), "Expected finite values .* not so in sample 1 of"),
        (changed("values", (0, 2, 1), 1.0), "Expected values of zero where neither mask is one"),
        (changed("values", (1, 2, 1), NAN), "Expected values of zero where neither mask is one"),
        (changed("mask", (1, 2, 0), 1.0), "Expected masks of zero in the padding"),
        (changed("target_mask", (1, 2, 0), 1.0), "Expected masks of zero in the padding"),
        (changed("times", (0, 1), 0.0), "Expected strictly increasing times, but not so in sam"),
        (changed("times", (0, 0), 0.6), "Expected strictly increasing times, but not so in sam"),
        (changed("times", (1, 2), 0.5), "Expected padding that repeats the last time"),
        (changed("labels", (1, 1), 0), "Expected labels of -1 in the padding"),
        (changed("mask", 1, 0.0), "Expected at least one observation in every sample"),
    ],
)
def test_broken_batches_raise(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_series(batch)


def test_the_first_broken_samples_are_named():
    ones = torch.ones(9, 2, 1)
    batch = make_series([torch.arange(2.0)] * 9, list(ones), list(ones))
    batch = batch._replace(times=batch.times.flip(1))
    with pytest.raises(ValueError, match=r"not so in sample 0, 1, 2, 3, 4 of the batch\. Clean"):
        check_series(batch)


def test_where_something_is_observed_or_asked_for():
    batch = good()
    assert batch.observed.tolist() == [[True, True, True], [True, False, False]]
    assert batch.asked.tolist() == [[True, True, True], [True, False, False]]  # all have labels
    batch = batch._replace(labels=batch.labels.clone().fill_(-1))
    assert batch.asked.tolist() == [[False, True, False], [True, False, False]]
    assert torch.equal(batch._replace(labels=torch.zeros(2).long()).asked, batch.asked)


def test_times_are_left_out():
    kept = keep_times(good(), torch.tensor([[False, False, True], [False] * 3]))
    check_series(kept)
    assert kept.times.tolist() == [[0.0, 0.75], [0.25, 0.25]]
    assert kept.values.tolist() == [[[0.0, 1.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]
    assert kept.mask.tolist() == [[[1, 1], [1, 0]], [[1, 0], [0, 0]]]
    assert kept.target_mask.tolist() == [[[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    assert (kept.lengths.tolist(), kept.labels.tolist()) == ([2, 1], [[2, 1], [4, -1]])


def test_keeping_all_times_changes_nothing():
    batch = good()._replace(labels=torch.tensor([3, 4]))
    for part, expected in zip(keep_times(batch, batch.valid), batch, strict=True):
        assert torch.equal(part, expected)


def test_padding_cannot_be_kept():
    with pytest.raises(ValueError, match="Expected no padding among the times to keep"):
        keep_times(good(), torch.ones(2, 3, dtype=torch.bool))


def test_all_parts_are_on_the_device_of_the_times():
    one = torch.ones(2, 1, device="meta")
    batch = make_series([one[:, 0]], [one], [one])
    assert {part.device.type for part in batch} == {"meta"}
