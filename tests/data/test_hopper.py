import importlib.util

import numpy as np
import pytest
import torch

from datamodules import hopper_simulator
from datamodules.hopper import MuJoCoHopperDataModule
from datamodules.hopper_simulator import load_hopper, simulate_hopper
from datamodules.series import SeriesData
from steer_lightning.nn.series import SeriesBatch, check_series
from tests.helpers.hopper_files import without_dm_control, write_hopper

FRACTIONS = [(0.1, 2), (0.2, 4), (0.3, 6), (0.5, 10), (1.0, 20), (0.001, 1)]


@pytest.fixture
def states(tmp_path, monkeypatch) -> torch.Tensor:
    without_dm_control(monkeypatch)
    return write_hopper(tmp_path)


def module(folder, **arguments) -> MuJoCoHopperDataModule:
    sizes = {"n_trajectories": 40, "n_points": 20, "val_size": 4, "batch_size": 8}
    return MuJoCoHopperDataModule(str(folder), **(sizes | arguments))


def everything(data: MuJoCoHopperDataModule) -> SeriesBatch:
    """All samples in the order of the file, as a batch would be."""
    batch = SeriesData(data.build("train").tensors)[:]
    check_series(batch)
    return batch


@pytest.mark.parametrize(("fraction", "n_observed"), FRACTIONS)
def test_interpolation(tmp_path, states, fraction, n_observed):
    batch = everything(module(tmp_path, observed_fraction=fraction))
    assert batch.values.shape == (40, 20, 14)
    assert batch.mask[..., 0].sum(1).eq(n_observed).all()
    assert torch.equal(batch.mask, batch.mask[..., :1].expand_as(batch.mask))
    assert batch.target_mask.all()
    torch.testing.assert_close(batch.times[3], torch.arange(20) / 20)
    assert batch.labels.shape == (40, 0)
    if fraction < 1.0:
        assert len({tuple(row) for row in batch.mask[..., 0].tolist()}) > 10


@pytest.mark.parametrize(("window", "n_window"), [(0.5, 10), (0.33, 7), (0.9, 18)])
def test_extrapolation(tmp_path, states, window, n_window):
    data = module(tmp_path, task="extrapolate", window=window, observed_fraction=0.5)
    batch = everything(data)
    assert (data.n_window, data.n_observed) == (n_window, round(n_window / 2))
    assert batch.mask[:, :n_window, 0].sum(1).eq(data.n_observed).all()
    assert not batch.mask[:, n_window:].any()
    assert not batch.target_mask[:, :n_window].any()
    assert batch.target_mask[:, n_window:].all()


@pytest.mark.parametrize("task", ["interpolate", "extrapolate"])
@pytest.mark.parametrize("by", ["train", "all", "released"])
def test_values_are_scaled_over_all_points(tmp_path, states, task, by):
    data = module(tmp_path, task=task, normalise_by=by)
    batch = everything(data)
    chosen = states[data.build("train").chosen] if by == "train" else states
    low, high = chosen.amin((0, 1)), chosen.amax((0, 1))
    expected = (states - low) / (high if by == "released" else high - low)
    torch.testing.assert_close(batch.values, expected * (batch.mask + batch.target_mask > 0))


def test_a_window_is_cut_from_longer_trajectories(tmp_path, states):
    data = module(tmp_path, n_points=5, n_simulated=20, observed_fraction=1.0)
    cut = data.load()[0].values
    starts = [
        next(i for i in range(16) if torch.equal(states[n, i : i + 5], cut[n])) for n in range(40)
    ]
    assert len(set(starts)) > 8
    assert torch.equal(data.load()[0].values, cut)


def test_observed_points_depend_on_the_seed_alone(tmp_path, states):
    first, again, other = (everything(module(tmp_path, seed=seed)).mask for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def simulated(monkeypatch, name="1.0") -> list[tuple[int, int]]:
    """Pretend that dm_control is installed; return the list of what was simulated."""
    calls = []

    def simulate(n_trajectories: int, n_points: int) -> torch.Tensor:
        calls.append((n_trajectories, n_points))
        return torch.zeros(n_trajectories, n_points, 14)

    monkeypatch.setattr(hopper_simulator, "version", lambda package: name)
    monkeypatch.setattr(hopper_simulator, "simulate_hopper", simulate)
    return calls


def test_trajectories_are_simulated_once_for_settings_and_versions(tmp_path, monkeypatch):
    calls = simulated(monkeypatch)
    for _ in range(2):
        module(tmp_path).prepare_data()
        load_hopper(tmp_path, 40, 20)
    assert calls == [(40, 20)]
    load_hopper(tmp_path, 40, 21)
    assert calls == [(40, 20), (40, 21)]
    calls = simulated(monkeypatch, name="2.0")
    load_hopper(tmp_path, 40, 20)
    assert calls == [(40, 20)]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"hopper-40x{n}-seed123-dm_control{version}-mujoco{version}.pt"
        for n, version in ((20, "1.0"), (20, "2.0"), (21, "1.0"))
    }


def test_without_dm_control_a_file_is_taken_and_named_or_the_remedy_is(tmp_path, states, caplog):
    with caplog.at_level("INFO"):
        assert torch.equal(load_hopper(tmp_path, 40, 20), states)
    assert "dm_control is not installed; taking" in caplog.text
    assert "hopper-40x20-seed123-made-up.pt" in caplog.text
    message = r"Expected dm_control to simulate the hopper.*`pip install dm-control==1\.0\.50 mujo"
    with pytest.raises(ModuleNotFoundError, match=message):
        module(tmp_path, n_points=21).prepare_data()


@pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None,
    reason="dm_control is not installed: pip install dm-control==1.0.50 mujoco==3.17.0",
)
def test_real_simulator(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    states = simulate_hopper(20, 30)
    assert states.shape == (20, 30, 14)
    assert states.isfinite().all()
    # The first point is what was drawn, trajectory by trajectory.
    random = np.random.RandomState(123)
    for state in states[:, 0]:
        drawn = [random.uniform(*limits, size=n) for *limits, n in ((0, 0.5, 2), (-2, 2, 5))]
        drawn.append(random.uniform(-5, 5, size=7))
        torch.testing.assert_close(state, torch.tensor(np.concatenate(drawn)).float())
    # A step is 5 ms: positions move by velocity times time, up to the change of velocity.
    moved = states[:, 1, :7] - states[:, 0, :7]
    mean_velocity = (states[:, 0, 7:] + states[:, 1, 7:]) / 2
    assert (moved - 0.005 * mean_velocity).abs().median() < 5e-3
    assert torch.equal(simulate_hopper(5, 30), states[:5])
