"""Gradients through implicit steps, checkpoints, and the work that is counted."""

import pytest
import torch

from steer_lightning.nn import MLPField
from steer_lightning.solvers import (
    AdaptiveSolver,
    RosenbrockSolver,
)
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from tests.helpers.models import RecordingField, seeded
from tests.helpers.problems import (
    CosineField,
    OscillatorField,
    initial_state,
    times,
)
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

    inputs = (initial_state(1), times(*ends), times(1.0, 0.7, 3.0))
    inputs = [x.requires_grad_() for x in inputs]
    close = {"rodas5p": 1e-5, "rodas4": 1e-4, "rosenbrock23": 2e-2}[method]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=close, rtol=close)


@pytest.mark.parametrize("method", ["rodas5p", "rodas4"])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
def test_gradients_are_those_of_the_explicit_solver(method, state):
    found = []
    for solver in (
        RosenbrockSolver(method, 1e-9, 1e-9),
        AdaptiveSolver("dopri5", 1e-11, 1e-11, None),
    ):
        field = Swing() if state == "tensor" else OscillatorField()
        y0, t = initial_state().requires_grad_(), times(0.1, 0.7, 1.9).requires_grad_()
        ys = solver.solve(field, y0 if state == "tensor" else (y0, 2.0 * y0), t).ys
        ys = ys if state == "tensor" else torch.cat(ys, dim=-1)
        weights = torch.linspace(0.5, 1.0, ys.numel()).double().view_as(ys)
        found.append(torch.autograd.grad((weights * ys).sum(), (y0, t, *field.parameters())))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_gradients_of_a_stiff_solve_are_those_of_its_closed_form():
    found = []
    for by_steps in (True, False):
        field, y0 = Pull(1.0, 1e3, 1e6), times(2.0, 2.0, 2.0)[:, None].requires_grad_()
        t = times(0.0, 1.3).requires_grad_()
        if by_steps:
            y = RosenbrockSolver(rtol=1e-8, atol=1e-8).solve(field, y0, t).ys[-1]
        else:
            y = field.exact(y0, t[1])
        found.append(torch.autograd.grad(y.sum(), (y0, t, field.rates), allow_unused=True))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[0][1][1], found[1][1][1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-6, atol=1e-8)


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


@every_method
@pytest.mark.parametrize("state", ["tensor", "tuple"])
def test_checkpointing_changes_nothing_and_counts_what_it_does_again(method, state):
    results = []
    for checkpoint in (False, True):
        field = Swing() if state == "tensor" else OscillatorField()
        y0 = initial_state().requires_grad_()
        solution = solve(
            field, y0 if state == "tensor" else (y0, 2.0 * y0), 0.0, 2.0,
            method=method, tolerance=1e-4, checkpoint=checkpoint, first_step=1.0,
        )  # fmt: skip
        stats = solution.stats
        assert stats.rejected > 0
        assert stats.factorizations == stats.accepted + stats.rejected
        assert stats.jacobians >= stats.accepted
        y = solution.ys if state == "tensor" else torch.cat(solution.ys, dim=1)
        gradients = torch.autograd.grad(y[-1].square().sum(), (y0, *field.parameters()))
        again = stats.accepted if checkpoint else 0
        assert stats.jacobians_backward == stats.factorizations_backward == again
        assert stats.nfe_backward == again * len(ROSENBROCK[method].c)
        results.append((y.detach(), *gradients))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


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


def test_rejected_steps_keep_the_jacobian_and_leave_nothing_on_the_tape():
    kept = []

    class Squared(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(y):
            return y * y

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def jvp(ctx, tangent):
            return 2.0 * ctx.saved_tensors[0] * tangent

        @staticmethod
        def backward(ctx, gradient):
            kept.append(1)
            return 2.0 * ctx.saved_tensors[0] * gradient

    y0 = initial_state().requires_grad_()
    solution = solve(lambda t, y: -Squared.apply(y), y0, 0.0, 2.0, first_step=2.0, tolerance=1e-8)
    stats = solution.stats
    assert stats.rejected >= 1
    assert stats.jacobians == stats.accepted
    kept.clear()
    solution.ys[-1].sum().backward()
    assert len(kept) == 8 * stats.accepted


def test_work_is_counted():
    field = RecordingField(CosineField())
    solution = solve(field, initial_state(), 0.0, 20.0)
    stats = solution.stats
    tries = stats.accepted + stats.rejected
    # One to find the first step; one beside each Jacobian; seven for the other stages of a try.
    assert len(field.times) == stats.nfe_forward == 1 + stats.jacobians + 7 * tries
    assert (stats.jacobians, stats.factorizations) == (stats.accepted, tries)
    assert stats.nfe_backward == stats.jacobians_backward == 0
    assert 0.0 < stats.smallest_dt < 20.0
