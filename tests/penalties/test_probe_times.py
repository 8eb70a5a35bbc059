"""When penalties look: random times inside the drawn span, the same ones in a step taken again."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from steer_lightning import penalize, penalty, steer
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.nn.probes import Probing
from steer_lightning.penalties import KineticEnergy, TrajectoryPolynomial
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver
from tests.helpers.models import seeded
from tests.helpers.problems import CosineField
from tests.penalties.looking import looking


def test_probes_lie_inside_the_drawn_span():
    model = ODEBlock(MLPField(2, (4,)))
    for step in range(20):
        with (
            looking(model, TrajectoryPolynomial(1.0), step=step),
            steer(model, 0.9, step=step, seed=0) as ends,
        ):
            model(torch.ones(3, 2))
            (probed,) = model.probing.seen
            end = ends["steer/horizon/end_time"]
        assert probed.length == pytest.approx(end)
        assert all(0.0 < float(t) < end for t in probed.t)


def test_each_of_several_probe_times_is_uniform():
    field, times = CosineField(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    solver, y0, found = FixedGridSolver("euler", 3), torch.ones(2, 1, dtype=torch.float64), []
    for key in range(300):
        probing = Probing(2, key=key)
        probes = probing.times(times)
        solution, ys = solver.solve_probed(field, y0, times, probes)
        probing.see(field, field, times, probes, ys, solution)
        (probed,) = probing.seen
        for t, y in zip(probed.t, probed.y, strict=True):
            assert torch.equal(solution.at(t[None])[0], y)
        found.append(probed.t)
    for mean in torch.tensor(found).mean(0):
        assert abs(float(mean) - 0.5) < 3.5 * (1.0 / 12 / 300) ** 0.5


def test_each_sample_has_its_own_probe_times_under_its_own_end():
    model = ODEBlock(CosineField(), AdaptiveSolver("dopri5", 1e-9, 1e-9))
    y0 = torch.ones(3, 1, dtype=torch.float64)
    with looking(model, KineticEnergy(1.0)), steer(model, 0.5, step=0, seed=0, scope="sample"):
        model(y0)
        (probed,) = model.probing.seen
    assert probed.t[0].shape == probed.length.shape == (3,)
    expected = CosineField().exact(y0, 0.0, probed.t[0])
    torch.testing.assert_close(probed.y[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n_calls", [1, 2])
def test_a_checkpoint_around_a_block_repeats_its_probes(n_calls):
    block, y0 = seeded(ODEBlock, MLPField(2, (4,))), torch.ones(3, 2)
    gradients = []
    for solve in (block, partial(checkpoint, block, use_reentrant=False)):
        with penalize(block, [KineticEnergy(1.0)], step=0, seed=0):
            y = y0
            for _ in range(n_calls):
                y = solve(y)
            loss = penalty(block) + y.sum()
            gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
