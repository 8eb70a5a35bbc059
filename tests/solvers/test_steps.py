"""States between steps, and what the steps tell of a field."""

import math

import pytest
import torch
from torch import nn

from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.tableaus import ADAPTIVE, FIXED
from tests.helpers.models import RecordingField, seeded
from tests.helpers.problems import CosineField, LinearField, OscillatorField, initial_state, times

SPANS = [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)]
TIGHT = {
    "dopri5": AdaptiveSolver("dopri5", 1e-10, 1e-10),
    "tsit5": AdaptiveSolver("tsit5", 1e-10, 1e-10),
    "bosh3": AdaptiveSolver("bosh3", 1e-9, 1e-9, max_nfe=None),
    "rk4": FixedGridSolver("rk4", 200),
    "rodas5p": RosenbrockSolver("rodas5p", 1e-8, 1e-8),
    "rodas4": RosenbrockSolver("rodas4", 1e-8, 1e-8),
    "rosenbrock23": RosenbrockSolver("rosenbrock23", 1e-6, 1e-6),
}


def dense(solver, field, y0, *ends, **settings):
    return solver.solve(field, y0, times(*ends), dense=True, **settings)


def grids(t0, t1, n_samples=3, n_times=20):
    """Random times of each sample, unsorted, and both ends."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n_samples, n_times, generator=generator, dtype=torch.float64)
    return torch.cat([times(t0, t1).expand(n_samples, 2), t0 + (t1 - t0) * u], dim=1)


def exact(field, y0, t0, t):
    """Closed form at the times ``t`` of each sample, shape ``(B, T, L)``."""
    rows = [torch.cat([field.exact(y0[i : i + 1], t0, s) for s in t[i]]) for i in range(len(y0))]
    return torch.stack(rows)


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_closed_forms_in_both_directions_at_any_times(field_class, span, name):
    field, y0, t = field_class(), initial_state(), grids(*span)
    solution = dense(TIGHT[name], field, y0, *span)
    ys = solution.at(t)
    torch.testing.assert_close(ys[:, 0], y0, rtol=0.0, atol=1e-12)
    close = 1e-3 if name == "rosenbrock23" else 1e-6
    torch.testing.assert_close(ys, exact(field, y0, span[0], t), rtol=close, atol=close)
    # The same times for all samples lead with the time axis, as a solve's states do.
    shared = solution.at(t[0])
    assert shared.shape == (22, 3, 2)
    torch.testing.assert_close(shared[:, 0], ys[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*ADAPTIVE, *FIXED])
def test_the_error_of_one_step_falls_with_the_order_plus_one_at_its_end_and_inside(name):
    y0, errors = initial_state(), []
    solver = (
        FixedGridSolver(name, 1)
        if name in FIXED
        else AdaptiveSolver(name, 1e6, 1e6, first_step=10.0)
    )
    for h in (0.1, 0.05):
        for field, place in ((LinearField(), 1.0), (CosineField(), 0.4)):
            solution, t = dense(solver, field, y0, 0.5, 0.5 + h), 0.5 + place * h
            assert len(solution.steps) == 1
            errors.append(
                (solution.at(times(t))[0] - field.exact(y0, 0.5, t)).detach().abs().max()
            )
    found = (torch.stack(errors[:2]) / torch.stack(errors[2:])).log2()
    inside = {"dopri5": 4, "tsit5": 4, "bosh3": 3, "rk4": 3, "midpoint": 2, "heun": 2, "euler": 1}
    expected = [{**ADAPTIVE, **FIXED}[name].order + 1, inside[name] + 1]
    assert found.tolist() == pytest.approx(expected, abs=0.5)


def test_gradcheck_in_state_parameters_and_times_read():
    field = CosineField()
    del field.a

    def outputs(y0, a, t):
        field.a = a
        return dense(TIGHT["dopri5"], field, y0, 0.0, 1.0).at(t)

    a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    t = times(0.3, 0.75).expand(2, 2).clone().requires_grad_()
    y0 = initial_state(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(outputs, (y0, a, t), atol=1e-6)


@pytest.mark.parametrize("quietly", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", [AdaptiveSolver(), FixedGridSolver()])
def test_a_look_without_gradients_takes_none_from_later_readings(solver, quietly):
    found = []
    for looks in (False, True):
        field = CosineField()
        solution = dense(solver, field, initial_state(), 0.0, 1.0)
        if looks:
            with quietly():
                solution.at(times(0.3))
        solution.at(times(0.5)).sum().backward()
        found.append(field.a.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "solver", [AdaptiveSolver(), FixedGridSolver(), FixedGridSolver("heun", 3)]
)
@pytest.mark.parametrize("state", ["tensor", "tuple"])
def test_asking_to_read_between_steps_changes_no_bit(solver, state):
    field = RecordingField(CosineField() if state == "tensor" else OscillatorField())
    y0 = initial_state(dtype=torch.float32)
    y0 = y0 if state == "tensor" else (y0, 2.0 * y0)
    field.vector_field.float()
    plain = solver.solve(field, y0, times(0.0, 0.7, 3.0))
    read = dense(solver, field, y0, 0.0, 0.7, 3.0)
    pairs = [(plain.ys, read.ys)] if state == "tensor" else zip(plain.ys, read.ys, strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    extra = read.stats.nfe_forward - plain.stats.nfe_forward
    assert extra == isinstance(solver, FixedGridSolver)  # the slope at the very end


@pytest.mark.parametrize("method", ADAPTIVE)
def test_further_output_times_change_no_state_bit_for_bit(method):
    field, y0, solver = CosineField(), initial_state(), AdaptiveSolver(method)
    few = solver.solve(field, y0, times(0.0, 1.0, 3.0))
    many = solver.solve(field, y0, times(0.0, 0.3, 1.0, 2.9, 3.0))
    assert torch.equal(few.ys, many.ys[[0, 2, 4]])
    assert few.stats == many.stats == solver.solve(field, y0, times(0.0, 3.0)).stats


@pytest.mark.parametrize("shape", [(), (3, 4, 5)])
def test_states_of_any_shape_can_be_read(shape):
    y0 = torch.ones(shape, dtype=torch.float64)
    solution = dense(TIGHT["dopri5"], lambda t, y: -y, y0, 0.0, 1.0)
    expected = (math.exp(-0.5) * y0).expand(1, *shape)
    torch.testing.assert_close(solution.at(times(0.5)), expected, rtol=1e-8, atol=0.0)


def test_parts_of_a_state_may_have_batches_of_their_own():
    y0 = torch.ones(4, 3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    solution = TIGHT["dopri5"].solve(
        lambda t, y: (-y[0], y[0].square().mean()), y0, times(0.0, 0.5, 1.0)
    )
    expected = 0.5 * (1.0 - torch.exp(-2.0 * times(0.0, 0.5, 1.0)))
    torch.testing.assert_close(solution.ys[1], expected, rtol=1e-8, atol=1e-8)
    assert solution.ys[0].shape == (3, 4, 3)


@pytest.mark.parametrize("t", [-0.1, -0.001, 1.001, float("nan")])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_times_outside_are_refused(t, span):
    solution = dense(AdaptiveSolver(), CosineField(), initial_state(), *span)
    asked = torch.full((3, 4), 0.5, dtype=torch.float64)
    asked[1, 2] = t
    with pytest.raises(ValueError, match=rf"Expected times between {span[0]:g} and .* got {t:g}"):
        solution.at(asked)


def test_rounding_does_not_put_a_time_outside():
    solution = dense(AdaptiveSolver(), CosineField(), initial_state(), 0.0, 0.3)
    found = solution.at(times(0.1 + 0.2, 0.3))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3, 4)])
def test_times_are_one_grid_for_all_or_for_each_sample(shape):
    solution = dense(AdaptiveSolver(), CosineField(), initial_state(), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"or \(B, T\) for B = 3 samples, but got shape"):
        solution.at(torch.zeros(shape))


def test_steps_join_also_under_autocast():
    net = seeded(nn.Linear, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y0, solver = initial_state(dtype=torch.float32), AdaptiveSolver("dopri5", 0.1, 0.1)
        steps = dense(solver, lambda t, y: net(y).tanh(), y0, 0.0, 9.0).steps
    found = steps.at(steps.knots)
    assert len(steps) >= 2
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(steps.states), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_error_estimate_is_that_which_decided_and_has_a_gradient(method):
    solver = AdaptiveSolver(method, 1e-4, 1e-4)
    y0 = initial_state().requires_grad_()
    steps = dense(solver, CosineField(), y0, 0.0, 5.0).steps
    errors = steps.error_estimates()
    assert errors.shape == (len(steps),)
    assert bool((errors <= 1.0).all())
    # By hand, from the stages of one step.
    weights, h = torch.tensor(ADAPTIVE[method].error, dtype=torch.float64), steps.lengths[1]
    estimate = h * (weights[:, None, None] * torch.stack(steps.stages[1])).sum(0)
    size = torch.maximum(steps.states[1].abs(), steps.states[2].abs())
    by_hand = (estimate / (1e-4 + 1e-4 * size)).square().mean().sqrt()
    torch.testing.assert_close(errors[1], by_hand, rtol=1e-8, atol=0.0)
    (gradient,) = torch.autograd.grad(errors.sum(), y0)
    assert float(gradient.abs().max()) > 0.0


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
@pytest.mark.parametrize("rate", [3.0, 50.0])
def test_the_stiffness_of_a_linear_field_is_its_rate(method, rate):
    steps = dense(AdaptiveSolver(method), lambda t, y: -rate * y, initial_state(), 0.0, 1.0).steps
    estimates = steps.stiffness_estimates()
    torch.testing.assert_close(estimates, torch.full_like(estimates, rate), rtol=1e-6, atol=0.0)


def test_what_a_solver_or_a_method_does_not_know_it_refuses_to_tell():
    problem = (CosineField(), initial_state(), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"read between its steps, but torchdiffeq .* Use Adapt"):
        dense(TorchdiffeqSolver(), *problem)
    with pytest.raises(ValueError, match="a solve that kept its steps"):
        AdaptiveSolver().solve(CosineField(), initial_state(), times(0.0, 1.0)).at(times(0.5))
    with pytest.raises(ValueError, match="Expected an adaptive method"):
        dense(FixedGridSolver(), *problem).steps.error_estimates()
    with pytest.raises(ValueError, match="evaluates the end of a step twice"):
        dense(AdaptiveSolver("bosh3"), *problem).steps.stiffness_estimates()
    with pytest.raises(ValueError, match="Expected an explicit method"):
        dense(RosenbrockSolver(), *problem).steps.stiffness_estimates()
