"""Arguments out of range, and random streams, of every data module."""

import math

import pytest
import torch

from datamodules import (
    HumanActivityDataModule,
    ImageNet32DataModule,
    MNISTDataModule,
    MuJoCoHopperDataModule,
    PeriodicDataModule,
    PhysioNetDataModule,
    StiffODEDataModule,
    StiffSystemDataModule,
    ToyDensityDataModule,
)
from datamodules.stiff import stiff_solution

AT_LEAST = [
    (MNISTDataModule, 0, "num_workers val_size"),
    (MNISTDataModule, 1, "batch_size eval_batch_size limit_train"),
    (PhysioNetDataModule, 0, "val_size"),
    (PhysioNetDataModule, 1, "limit_train batch_size"),
    (HumanActivityDataModule, 1, "stride"),
    (HumanActivityDataModule, 2, "window"),
    (MuJoCoHopperDataModule, 1, "n_trajectories"),
    (MuJoCoHopperDataModule, 2, "n_points"),
    (MuJoCoHopperDataModule, 100, "n_simulated"),
    (PeriodicDataModule, 1, "n_trajectories n_observed"),
    (PeriodicDataModule, 2, "n_points"),
    (ToyDensityDataModule, 1, "n_train n_val n_test batch_size"),
    (StiffODEDataModule, 1, "n_starts"),
    (StiffODEDataModule, 2, "n_test"),
    (StiffSystemDataModule, 1, "gaps repeats batch_size"),
    (StiffSystemDataModule, 2, "n_points n_test"),
]
CHOICES = [
    (MNISTDataModule, "pixels"),
    (ImageNet32DataModule, "variant"),
    (HumanActivityDataModule, "split"),
    (PhysioNetDataModule, "normalise_by"),
    (MuJoCoHopperDataModule, "task"),
    (MuJoCoHopperDataModule, "normalise_by"),
    (PeriodicDataModule, "offset"),
    (PeriodicDataModule, "noise"),
    (ToyDensityDataModule, "test_points"),
    (StiffODEDataModule, "start_times"),
    (StiffODEDataModule, "dtype"),
    (StiffSystemDataModule, "system"),
    (StiffSystemDataModule, "dtype"),
]
ONE_DIMENSION = "one-dimensional density in closed form"
OTHERS = [
    (MNISTDataModule, {"image_size": 3}, "a divisor of 28, but got 3. Choose one of 28, 14, 7, 4"),
    (MNISTDataModule, {"image_size": 0}, "a divisor of 28, but got 0"),
    (PhysioNetDataModule, {"time_bin": 0.0}, "positive and at most 48 hours, but got 0"),
    (PhysioNetDataModule, {"time_bin": 48.1}, "positive and at most 48 hours, but got 48.1"),
    (PhysioNetDataModule, {"time_bin": math.nan}, "positive and at most 48 hours, but got nan"),
    (MuJoCoHopperDataModule, {"observed_fraction": 0.0}, "0 < observed_fraction <= 1, but got 0"),
    (MuJoCoHopperDataModule, {"observed_fraction": 1.1}, "0 < observed_fraction <= 1, but got 1"),
    (MuJoCoHopperDataModule, {"window": 0.001}, "at least one point on each side, but got 0.001"),
    (MuJoCoHopperDataModule, {"window": 0.998}, "at least one point on each side, but got 0.998"),
    (PeriodicDataModule, {"n_observed": 101}, "at most `n_points`, 100, but got 101"),
    (PeriodicDataModule, {"t_end": 0.0}, "both finite, but got 0.0 and"),
    (PeriodicDataModule, {"t_end": math.inf}, "both finite, but got inf and"),
    (PeriodicDataModule, {"noise_scale": -1.0}, "both finite, but got 5.0 and -1.0"),
    (PeriodicDataModule, {"noise_scale": math.nan}, "both finite, but got 5.0 and nan"),
    (ToyDensityDataModule, {"name": "pinwhel"}, "`density` to be .* Did you mean 'pinwheel'"),
    (ToyDensityDataModule, {"name": "moons", "test_points": "quadrature"}, ONE_DIMENSION),
    (ToyDensityDataModule, {"test_points": "quadrature"}, ONE_DIMENSION),
    (StiffODEDataModule, {"interval": 0.0}, "both finite, but got interval=0.0 and t_end=15.0"),
    (StiffODEDataModule, {"interval": 15.0}, "both finite, but got interval=15.0"),
    (StiffODEDataModule, {"t_end": math.inf}, "both finite, but .* t_end=inf"),
    (StiffODEDataModule, {"test_t_end": 0.0}, "`test_t_end` to be positive and finite, but got 0"),
    (
        StiffODEDataModule,
        {"n_starts": 121, "start_times": "grid"},
        "Expected n_starts \\* interval",
    ),
    (StiffODEDataModule, {"r": 1e-4, "start_times": "log_uniform"}, "Expected 0.01 / r < t_end"),
    *((StiffODEDataModule, {"r": r}, "`r` to be positive") for r in (0.0, -1, math.inf, math.nan)),
]


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        *(
            (cls, {name: least - 1}, f"`{name}` to be at least {least}, but got {least - 1}")
            for cls, least, names in AT_LEAST
            for name in names.split()
        ),
        *((cls, {name: "one"}, f"`{name}` to be one of .* got 'one'") for cls, name in CHOICES),
        *OTHERS,
    ],
)
def test_arguments_out_of_range_raise(cls, arguments, message):
    if cls is ImageNet32DataModule:
        with pytest.raises(TypeError, match="variant"):  # It has no default.
            cls()
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


def test_a_rate_must_be_positive():
    with pytest.raises(ValueError, match="Expected `r` to be positive and finite, but got 0"):
        stiff_solution(torch.zeros(1), 0.0)


@pytest.mark.parametrize("cls", [PeriodicDataModule, ToyDensityDataModule, StiffODEDataModule])
def test_what_is_drawn_depends_on_the_seed_and_no_global_stream(cls):
    def batch(seed):
        data = cls(seed=seed)
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    before = torch.get_rng_state()
    first, again, other = batch(0), batch(0), batch(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)
