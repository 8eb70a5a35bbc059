"""Grids of times, against a solve of each interval written by hand."""

import copy

import pytest
import torch
from torchdiffeq import odeint

from steer_lightning.functional import EndTimeDraw
from steer_lightning.horizon import GridHorizon
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import StubSolver
from tests.helpers.problems import (
    CosineField,
    LinearField,
    OscillatorField,
    initial_state,
    times,
)

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
GRIDS = [(0.0, 0.3, 1.0, 1.2), (1.2, 1.0, 0.3, 0.0), (-1.0, 2.0)]
gradient_modes = pytest.mark.parametrize("gradient", ["autograd", "adjoint"])


def perturbed(**settings):
    horizon = GridHorizon()
    horizon.perturb(EndTimeDraw(**{"b": None, "key": 5, **settings}))
    return horizon


def interval_by_interval(field, y0, starts, ends):
    """Interval ``i`` from its own start to its own end, each from where the last one came out."""
    ys = [y0]
    for start, end in zip(starts, ends, strict=True):
        ys.append(odeint(field, ys[-1], torch.stack([start, end]), **TIGHT)[-1])
    return torch.stack(ys)


def gradients(ys, *inputs):
    weights = torch.linspace(0.5, 1.0, ys.numel(), dtype=ys.dtype).reshape_as(ys)
    return torch.autograd.grad((ys * weights).sum(), inputs)


@gradient_modes
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
@pytest.mark.parametrize("b", [None, 0.25])
def test_each_interval_runs_from_its_own_time_to_its_own_end(gradient, grid, field_class, b):
    field, y0, t_eval = field_class(), initial_state().requires_grad_(), times(*grid)
    horizon = perturbed(b=b)
    ends = horizon.end_times(t_eval)
    ys = horizon.solve(TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
    expected = interval_by_interval(field, y0, t_eval[:-1], ends)
    torch.testing.assert_close(ys, expected, rtol=1e-6, atol=1e-6)
    params = list(field.parameters())
    torch.testing.assert_close(
        gradients(ys, y0, *params), gradients(expected, y0, *params), rtol=1e-5, atol=1e-5
    )


def test_a_field_without_time_takes_one_smooth_solve():
    stub, field, y0, t_eval = StubSolver(), LinearField(), initial_state(), times(0.0, 0.3, 1.0)
    horizon = perturbed()
    horizon.solve(stub, field, y0, t_eval)
    assert stub.fields == [field]
    stretched = stub.t_evals[0]
    assert stretched[0] == t_eval[0]
    torch.testing.assert_close(stretched.diff(), horizon.end_times(t_eval) - t_eval[:-1])


def test_a_field_with_time_takes_one_solve_an_interval_from_unperturbed_starts():
    stub, y0, t_eval = StubSolver(), initial_state(), times(0.0, 0.3, 1.0)
    perturbed().solve(stub, CosineField(), y0, t_eval)
    assert [t.tolist() for t in stub.t_evals] == [[0.0, 0.3], [0.3, 1.0]]
    starts = [field.warp.actual(t[0]) for field, t in zip(stub.fields, stub.t_evals, strict=True)]
    assert torch.equal(torch.stack(starts), t_eval[:-1])


def test_states_may_be_tuples():
    field, y0, t_eval = OscillatorField(), (initial_state(), initial_state()), times(0.0, 0.5, 1.0)
    horizon = perturbed()
    total = (horizon.end_times(t_eval) - t_eval[:-1]).sum()
    xs, vs = horizon.solve(TorchdiffeqSolver(**TIGHT), field, y0, t_eval).ys
    assert xs.shape == (3, 3, 2)
    x, v = field.exact(y0, 0.0, total)
    torch.testing.assert_close(xs[-1], x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(vs[-1], v, rtol=1e-7, atol=1e-7)


@gradient_modes
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_end_times_for_each_sample(gradient, field_class):
    field, y0, t_eval = field_class(), initial_state(4).requires_grad_(), times(0.0, 0.3, 1.0)
    horizon = perturbed(scope="sample")
    ends = horizon.end_times(t_eval, batch_size=4)
    assert ends.shape == (4, 2)
    ys = horizon.solve(TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
    singles = [interval_by_interval(field, y0[i : i + 1], t_eval[:-1], ends[i]) for i in range(4)]
    expected = torch.cat(singles, dim=1)
    torch.testing.assert_close(ys, expected, rtol=1e-6, atol=1e-6)
    params = list(field.parameters())
    torch.testing.assert_close(
        gradients(ys, y0, *params), gradients(expected, y0, *params), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_ends_stay_within_the_half_width_of_each_interval(grid):
    t_eval, epsilon, b = times(*grid), 0.1, 0.2
    for key in range(50):
        for draw_b in (None, b):
            ends = perturbed(b=draw_b, epsilon=epsilon, key=key).end_times(t_eval)
            limit = (1 - epsilon) * t_eval.diff().abs()
            if draw_b is not None:
                limit = limit.clamp(max=b)
            assert bool(((ends - t_eval[1:]).abs() <= limit + 1e-12).all())


def test_the_same_draw_gives_the_same_ends_when_asked_again():
    horizon, t_eval = perturbed(), times(0.0, 0.3, 1.0)
    first = horizon.end_times(t_eval)
    assert torch.equal(horizon.end_times(t_eval), first)
    results = [
        horizon.solve(TorchdiffeqSolver(), CosineField(), initial_state(), t_eval).ys
        for _ in range(2)
    ]
    assert torch.equal(*results)
    horizon.perturb(EndTimeDraw(None, key=6))
    assert not torch.equal(horizon.end_times(t_eval), first)
    assert len(((first - t_eval[:-1]) / t_eval.diff()).unique()) == 2


@pytest.mark.parametrize("draw", [None, EndTimeDraw(0.0), EndTimeDraw(None, scale=0.0)])
def test_without_an_offset_the_solver_gets_what_the_user_gave(draw):
    horizon, stub, field, t_eval = GridHorizon(), StubSolver(), CosineField(), times(0.0, 0.3, 1.0)
    if draw is not None:
        horizon.perturb(draw)
    horizon.solve(stub, field, initial_state(), t_eval)
    assert stub.fields == [field]
    assert stub.t_evals[0] is t_eval
    assert torch.equal(horizon.end_times(t_eval), t_eval[1:])


@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_a_fixed_grid_takes_as_many_steps_as_without(field_class):
    solver, field, t_eval = FixedGridSolver(n_steps=3), field_class(), times(0.0, 0.3, 1.0)
    plain = solver.solve(field, initial_state(), t_eval).stats
    assert perturbed().solve(solver, field, initial_state(), t_eval).stats == plain


@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_a_backward_pass_sees_the_ends_of_its_forward_pass(field_class):
    field, y0, t_eval = field_class(), initial_state().requires_grad_(), times(0.0, 0.3, 1.0)
    found = []
    for gradient in ("autograd", "adjoint"):
        horizon = perturbed()
        ys = horizon.solve(TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
        horizon.reset()
        found.append(gradients(ys, y0, *field.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_times_have_gradients(field_class):
    field, y0 = field_class(), initial_state()
    t_eval, found = times(0.0, 0.3, 1.0).requires_grad_(), []
    for gradient in ("autograd", "adjoint"):
        solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
        found.append(gradients(perturbed().solve(solver, field, y0, t_eval).ys, t_eval))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def test_what_is_in_force_is_the_mean_stretch_of_the_last_solve():
    horizon, t_eval = perturbed(), times(0.0, 0.3, 1.0)
    assert horizon.in_force() == {"stretch": 1.0}
    horizon.solve(TorchdiffeqSolver(), CosineField(), initial_state(), t_eval)
    rates = (horizon.end_times(t_eval) - t_eval[:-1]) / t_eval.diff()
    assert horizon.in_force() == {"stretch": pytest.approx(float(rates.mean()))}
    assert copy.deepcopy(horizon).in_force() == {"stretch": 1.0}
    horizon.reset()
    assert horizon.in_force() == {"stretch": 1.0}
    assert horizon.describe() == "each interval of t_eval"


def test_a_block_solves_over_a_grid():
    block = ODEBlock(MLPField(2, (4,), time_dependent=False), horizon=GridHorizon())
    t_eval = torch.tensor([0.0, 0.5, 1.0])
    ys = block(torch.zeros(4, 2), t_eval)
    assert ys.shape == (3, 4, 2)
    assert not list(block.horizon.buffers())
    assert not [name for name in block.state_dict() if "horizon" in name]


def test_a_grid_has_no_times_of_its_own():
    solver, field, y0 = TorchdiffeqSolver(), CosineField(), initial_state()
    with pytest.raises(ValueError, match="Expected `t_eval` with a GridHorizon"):
        GridHorizon().solve(solver, field, y0)
    with pytest.raises(ValueError, match="Expected no `t_start` with a GridHorizon"):
        GridHorizon().solve(solver, field, y0, times(0.0, 1.0), t_start=times(0.0, 0.0, 0.0))


@pytest.mark.parametrize("t_eval", [(0.0, 1.0, 1.0), (0.0, 2.0, 1.0), (0.0,)])
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_bad_times_are_refused_while_a_draw_is_in_force(t_eval, field_class):
    with pytest.raises(ValueError, match="Expected `t_eval`"):
        perturbed().solve(TorchdiffeqSolver(), field_class(), initial_state(), times(*t_eval))
