"""Gradients through implicit steps, checkpoints, and the work that is counted."""

import pytest
import torch

from steer_lightning.nn import MLPField
from steer_lightning.solvers import AdaptiveSolver, RosenbrockSolver
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from tests.helpers.models import seeded
from tests.helpers.problems import initial_state, times
from tests.helpers.stiff import Pull, Swing, solve

every_method = pytest.mark.parametrize("method", ROSENBROCK)


@every_method
@pytest.mark.parametrize("ends", [(0.2, 1.1), (1.1, 0.2), (0.2, 0.5, 0.9, 1.1)])
def test_gradients_in_state_times_and_parameters_are_those_of_finite_differences(method, ends):
    # Finite differences see the steps change with the end; so exact a solution does not.
    tolerance = {"rodas5p": 1e-7, "rodas4": 1e-6, "rosenbrock23": 1e-4}[method]
    field, solver = Swing(), RosenbrockSolver(method, tolerance, tolerance, None)
    del field.w

    def outputs(y0, t_eval, w):
        field.w = w
        return solver.solve(field, y0, t_eval).ys

    start = (initial_state(1), times(*ends), times(1.0, 0.7, 3.0))
    inputs = [x.requires_grad_() for x in start]
    close = {"rodas5p": 1e-5, "rodas4": 1e-4, "rosenbrock23": 2e-2}[method]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=close, rtol=close)


def test_gradients_of_a_stiff_solve_are_those_of_its_closed_form():
    field, y0 = Pull(1.0, 1e3, 1e6), times(2.0, 2.0, 2.0)[:, None].requires_grad_()
    t0, t1 = (x.requires_grad_() for x in times(0.0, 1.3))
    ys = RosenbrockSolver(rtol=1e-8, atol=1e-8).solve(field, y0, torch.stack([t0, t1])).ys
    found, expected = (
        torch.autograd.grad(y.sum(), (y0, t1, field.rates)) for y in (ys[-1], field.exact(y0, t1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@every_method
def test_gradients_of_states_read_between_steps(method):
    field, y0 = Swing(), initial_state().requires_grad_()
    found = []
    tolerance = 1e-6 if method == "rosenbrock23" else 1e-9
    for solver in (
        RosenbrockSolver(method, tolerance, tolerance, None),
        AdaptiveSolver("dopri5", 1e-11, 1e-11, None),
    ):
        ys = solver.solve(field, y0, times(0.0, 1.0), dense=True).at(times(0.31, 0.77))
        found.append(torch.autograd.grad(ys.square().sum(), (y0, *field.parameters())))
    close = 1e-2 if method == "rosenbrock23" else 1e-6
    torch.testing.assert_close(*found, rtol=close, atol=close)


def test_checkpointing_keeps_less():
    sizes = []
    for checkpoint in (False, True):
        kept = {}

        def keep(tensor, kept=kept):
            kept[id(tensor)] = tensor
            return tensor

        field, y0 = seeded(MLPField, 2, (64,)).double(), initial_state().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            solution = solve(field, y0, 0.0, 1.0, checkpoint=checkpoint)
        assert solution.stats.accepted > 2
        solution.ys[-1].sum().backward()
        sizes.append(sum(tensor.numel() for tensor in kept.values()))
    assert sizes[1] < 0.3 * sizes[0]
