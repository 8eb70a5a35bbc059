import math

import pytest
import torch

from datamodules.periodic import PeriodicDataModule
from steer_lightning.nn.series import SeriesBatch, check_series


def everything(**arguments) -> SeriesBatch:
    series, groups = PeriodicDataModule(**arguments).load()
    assert groups is None
    return series


def residual(series: SeriesBatch, with_trend: bool) -> torch.Tensor:
    """Rest of each trajectory after the best offset and frequency, shape (N, T)."""
    t, y = series.times.double(), series.values.squeeze(-1).double()
    frequency = torch.linspace(0.4, 0.8, 4001, dtype=torch.float64)
    rest = []
    for times, values in zip(t, y - t if with_trend else y, strict=True):
        left = values - torch.sin(2 * math.pi * frequency[:, None] * times)
        left = left - left[:, :1]  # The first point has neither wave nor noise.
        rest.append(left[left.square().mean(1).argmin()])
    return torch.stack(rest)


@pytest.mark.parametrize("with_trend", [True, False])
def test_trajectories_are_sine_waves(with_trend):
    series = everything(n_trajectories=20, with_trend=with_trend, noise_scale=0.0)
    assert residual(series, with_trend).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("noise", "mean", "std"), [("gaussian", 0.0, 0.1), ("uniform", 0.05, 0.1 / math.sqrt(12))]
)
def test_noise(noise, mean, std):
    arguments = {"n_trajectories": 200, "n_points": 50, "seed": 3}
    clean = everything(noise_scale=0.0, **arguments).values
    noisy = everything(noise_scale=0.1, noise=noise, **arguments).values
    difference = (noisy - clean).squeeze(-1)
    assert not difference[:, 0].any()
    assert float(difference[:, 1:].mean()) == pytest.approx(mean, abs=5e-3)
    assert float(difference[:, 1:].std()) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("offset", "mean", "std"), [("normal", 0.0, 1.0), ("released", 1.0, 0.1)])
def test_first_values(offset, mean, std):
    first = everything(n_trajectories=2000, n_points=2, n_observed=1, offset=offset).values[:, 0]
    assert float(first.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(2000))
    assert float(first.std()) == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("shared", [True, False])
def test_times(shared):
    times = everything(n_trajectories=300, shared_times=shared).times
    assert len({tuple(row) for row in times.tolist()}) == (1 if shared else 300)
    assert not times[:, 0].any()
    assert times.diff(dim=1).min() > 0.0
    assert times.max() < 5.0
    if not shared:
        assert float(times.mean()) == pytest.approx(2.5 * 99 / 100, abs=0.05)


def test_equal_times_are_drawn_again_until_they_cannot_differ():
    # Of so many numbers in float32, two are equal in most grids.
    times = everything(n_trajectories=3, n_points=8000, n_observed=9, shared_times=False).times
    assert times.diff(dim=1).min() > 0.0
    with pytest.raises(ValueError, match=r"Expected 100 times on \[0, 1e-44\] that differ in flo"):
        everything(t_end=1e-44)


def test_half_of_the_points_is_observed_and_all_are_targets():
    data = PeriodicDataModule()
    data.setup()
    batches = list(data.train_dataloader())
    assert [len(batch.times) for batch in batches] == [50] * 14 + [20]
    for batch in batches:
        check_series(batch)
        assert batch.values.shape[1:] == (100, data.n_features)
        assert batch.mask.sum((1, 2)).eq(50).all()
        assert batch.target_mask.all()
        assert batch.labels.shape[1] == data.num_classes == 0
    assert len({tuple(row) for row in batches[0].mask.squeeze(-1).tolist()}) == 50
