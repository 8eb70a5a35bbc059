import pytest
import torch

from datamodules.scaling import min_max

TRAIN = torch.tensor([2, 0])


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = 10.0 * torch.randn(6, 5, 3, generator=generator)
    return values, torch.rand(6, 5, 3, generator=generator) < 0.7


@pytest.mark.parametrize("by", ["train", "all", "released"])
def test_scaling_is_that_of_a_loop_over_features(by):
    values, seen = example()
    values[~seen] = torch.nan  # has no influence
    scaled = min_max(values, seen, TRAIN, by)
    assert not scaled[~seen].any()
    for feature in range(3):
        of_all, is_seen = values[..., feature], seen[..., feature]
        chosen = of_all[TRAIN][is_seen[TRAIN]] if by == "train" else of_all[is_seen]
        low, high = chosen.min(), chosen.max()
        expected = (of_all[is_seen] - low) / (high if by == "released" else high - low)
        torch.testing.assert_close(scaled[..., feature][is_seen], expected)
    assert min_max(values.double(), seen, TRAIN, by).dtype == torch.float64


@pytest.mark.parametrize("by", ["train", "all", "released"])
def test_degenerate_features_stay_finite(by):
    values, seen = example()
    values[..., 0] = 3.0  # One value only.
    seen[..., 1] = False  # Never seen.
    values[..., 2] -= values[..., 2].max()  # The maximum is zero.
    scaled = min_max(values, seen, TRAIN, by)
    assert scaled.isfinite().all()
    assert not scaled[..., :2].any()


def test_a_feature_that_training_never_saw_takes_the_range_of_all():
    values, seen = example()
    seen[TRAIN, :, 1] = False
    by_train, by_all = (min_max(values, seen, TRAIN, by) for by in ("train", "all"))
    assert torch.equal(by_train[..., 1], by_all[..., 1])
    assert not torch.equal(by_train[..., 0], by_all[..., 0])
