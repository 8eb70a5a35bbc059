import math

import pytest
import torch

from datamodules.stiff import StiffBatch, StiffODEDataModule, StiffTrajectory, stiff_solution

RATES = [0.01, 0.5, 1.0 - 1e-9, 1.0, 1.0 + 1e-9, 1.5, 3.0, 10.0, 1000.0]


@pytest.mark.parametrize("r", RATES)
def test_solution_satisfies_the_equation(r):
    t = torch.linspace(0.0, 20.0, 101, dtype=torch.float64, requires_grad=True)
    y = stiff_solution(t, r)
    (slope,) = torch.autograd.grad(y.sum(), t)
    residual = slope - (-r * y + 3.0 * r - 2.0 * r * torch.exp(-t))
    assert float(residual.detach().abs().max()) < 1e-12 * max(1.0, r)
    assert float(y[0].detach()) == 0.0
    late = stiff_solution(torch.tensor([0.0, 100.0, 1e4]), r)
    assert late.dtype == torch.float32
    assert late.isfinite().all()


def test_training_batches():
    data = StiffODEDataModule()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 50
    for batch in batches:
        assert isinstance(batch, StiffBatch)
        assert [tensor.shape for tensor in batch] == [(20,), (20, 1), (20,), (20, 1)]
        assert all(tensor.dtype == torch.float32 for tensor in batch)
        torch.testing.assert_close(batch.t_end, batch.t_start + 0.125)


def pieces(**arguments) -> StiffBatch:
    return StiffODEDataModule(dtype="float64", **arguments).build("train").tensors


@pytest.mark.parametrize("start_times", ["uniform", "uniform_and_zero", "log_uniform"])
@pytest.mark.parametrize("r", [10.0, 1000.0])
def test_pieces_lie_on_the_solution(start_times, r):
    batch = pieces(r=r, start_times=start_times)
    torch.testing.assert_close(batch.y_start, stiff_solution(batch.t_start, r).unsqueeze(-1))
    torch.testing.assert_close(batch.y_end, stiff_solution(batch.t_end, r).unsqueeze(-1))
    assert float(batch.t_start.min()) >= 0.0
    assert float(batch.t_end.max()) <= 15.0


def test_uniform_start_times_are_uniform():
    t = pieces(n_starts=4000).t_start
    assert float(t.mean()) == pytest.approx(14.875 / 2, rel=0.03)
    assert float(t.var()) == pytest.approx(14.875**2 / 12, rel=0.05)


def test_zero_joins_uniform_start_times():
    without, t = (
        pieces(start_times=kind).t_start.sort().values for kind in ("uniform", "uniform_and_zero")
    )
    assert float(without[0]) > 0.0
    assert float(t[0]) == 0.0
    assert int(torch.isin(t, without).sum()) == 999


def test_grid_of_the_released_code():
    interval = 15.0 / 119.0
    t = pieces(start_times="grid", interval=interval, n_starts=118).t_start.sort().values
    torch.testing.assert_close(t, torch.linspace(0.0, 15.0, 120, dtype=t.dtype)[:118])


def test_log_uniform_start_times_cover_the_transient():
    t = pieces(n_starts=4000, start_times="log_uniform").t_start.sort().values
    assert t[0] == 0.0
    low, high = 1e-5, 14.875
    assert t[1] >= low
    share = (math.log(5e-3) - math.log(low)) / (math.log(high) - math.log(low))
    assert float((t < 5e-3).double().mean()) == pytest.approx(share, abs=0.03)


def test_evaluation_is_one_trajectory():
    data = StiffODEDataModule(r=10.0, n_test=31, test_t_end=6.0, batch_size=7)
    data.setup()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (trajectory,) = loader
        assert isinstance(trajectory, StiffTrajectory)
        assert (trajectory.t.shape, trajectory.y.shape) == ((31,), (31, 1))
        assert (float(trajectory.t[0]), float(trajectory.t[-1])) == (0.0, 6.0)
        torch.testing.assert_close(
            trajectory.y, stiff_solution(trajectory.t, 10.0).unsqueeze(-1), atol=1e-5, rtol=1e-5
        )
