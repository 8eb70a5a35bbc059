"""Right-hand sides and sizes of stiff systems."""

import pytest
import torch

from datamodules.stiff import stiff_solution
from datamodules.stiff_systems import lienard, robertson, two_scales
from steer_lightning.solvers import RosenbrockSolver
from tests.helpers.problems import times


def test_two_scales_has_the_solution_in_closed_form():
    system, t = two_scales(100.0), times(0.01)[0].requires_grad_()
    y = stiff_solution(t, 100.0)
    (slope,) = torch.autograd.grad(y, t)
    found = system.vector_field(t, y.detach()[None, None])
    torch.testing.assert_close(found[0, 0], slope, rtol=1e-12, atol=0.0)


def test_robertson_keeps_its_mass_and_has_the_published_rates():
    field = robertson().vector_field
    slope = field(times(0.0)[0], times(0.5, 2e-5, 0.3)[None])[0]
    expected = times(-0.02 + 0.06, 0.02 - 0.06 - 0.012, 0.012)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)


def test_lienards_coordinates_are_van_der_pols():
    x, v, mu = 1.3, 2.5, 10.0
    acceleration = mu * (1.0 - x * x) * v - x
    z = v / mu - x + x**3 / 3.0
    found = lienard(mu).vector_field(times(0.0)[0], times(x, z)[None])[0]
    expected = times(v, acceleration / mu + (x * x - 1.0) * v)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("system", [two_scales(), robertson(), lienard()], ids=["4.4", "r", "l"])
def test_scales_are_the_sizes_that_the_states_reach(system):
    solver = RosenbrockSolver(rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        steps = solver.solve(
            system.vector_field, times(*system.y0)[None], times(*system.t_span), dense=True
        ).steps
    largest = torch.cat(steps.states).abs().amax(0) / times(*system.scale)
    assert bool((largest < 1.1).all())
    assert bool((largest > 0.7).all())
