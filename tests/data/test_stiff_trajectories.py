"""Reference trajectories of stiff systems, and their pieces."""

import numpy as np
import pytest
import torch

from datamodules import StiffBatch, StiffSystemDataModule, StiffTrajectory
from datamodules.stiff_systems import lienard, robertson
from datamodules.stiff_trajectories import SYSTEMS, trajectory
from steer_lightning.solvers import RosenbrockSolver


@pytest.mark.parametrize(
    ("name", "system", "tolerance"),
    [("robertson", robertson(), 1e-6), ("van_der_pol", lienard(), 1e-3)],  # times of its jumps
)
def test_reference_against_our_own_solver(name, system, tolerance):
    t, y = trajectory(name, 40)
    solver = RosenbrockSolver(rtol=1e-8, atol=1e-12, max_nfe=None)
    scale = torch.tensor(system.scale, dtype=torch.float64)
    with torch.no_grad():
        found = solver.solve(system.vector_field, (y[0] * scale)[None], t).ys[:, 0] / scale
    torch.testing.assert_close(found, y, rtol=0.0, atol=tolerance)
    assert y.dtype == t.dtype == torch.float64
    assert float(y.abs().max()) < 1.01


def test_points_of_robertsons_problem_lie_equally_in_the_logarithm():
    t, y = trajectory("robertson", 21)
    assert float(t[0]) == 0.0
    np.testing.assert_allclose(t[1:], 10.0 ** np.arange(-5.0, 5.01, 0.5), rtol=1e-12)
    mass = y @ torch.tensor(robertson().scale, dtype=torch.float64)
    torch.testing.assert_close(mass, torch.ones(22).double())


def test_points_of_van_der_pol_lie_equally_along_the_curve():
    t, y = trajectory("van_der_pol", 400)
    assert (float(t[0]), float(t[-1])) == (0.0, 2000.0)
    gaps = torch.cat([t[:, None] / 2000.0, y], dim=1).diff(dim=0).norm(dim=1)
    assert float(gaps.max() / gaps.min()) < 1.5  # straight ones, across a corner
    assert float(gaps.max() / gaps.median()) < 1.01
    assert float(t.diff().min()) < 1e-2 < 1.0 < float(t.diff().max())  # dense in the jumps


@pytest.mark.parametrize(("gaps", "repeats"), [(1, 1), (3, 2)])
def test_pieces_run_from_point_to_point(gaps, repeats):
    data = StiffSystemDataModule(n_points=8, gaps=gaps, repeats=repeats)
    batch = data.build("train")[:]
    assert isinstance(batch, StiffBatch)
    t_start, y_start, t_end, y_end = batch
    t, y = trajectory("robertson", 8)
    assert len(t_start) == (9 - gaps) * repeats
    first, last = torch.searchsorted(t, t_start), torch.searchsorted(t, t_end)
    assert first.bincount().tolist() == [repeats] * (9 - gaps)
    assert bool((last - first == gaps).all())
    assert torch.equal(y[first], y_start)
    assert torch.equal(y[last], y_end)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_evaluation_is_one_trajectory(system, dtype):
    data = StiffSystemDataModule(system=system, n_points=5, n_test=7, dtype=dtype)
    data.setup()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (batch,) = loader
        assert isinstance(batch, StiffTrajectory)
        assert batch.y.dtype == batch.t.dtype == getattr(torch, dtype)
        assert torch.equal(batch.y, trajectory(system, 7).y.to(batch.y.dtype))


def test_times_that_the_dtype_does_not_tell_apart_are_refused():
    data = StiffSystemDataModule(system="van_der_pol", n_points=200, dtype="float32")
    with pytest.raises(ValueError, match=r"float32 tells apart, .* Use dtype='float64'"):
        data.setup("fit")


def test_pieces_longer_than_the_trajectory_are_refused():
    with pytest.raises(ValueError, match=r"at most n_points = 4 gaps, but got gaps = 5\. Shorten"):
        StiffSystemDataModule(n_points=4, gaps=5)
