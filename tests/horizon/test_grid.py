"""Grids of times, against a solve of each interval written by hand."""

import copy

import pytest
import torch
from torch.autograd import gradcheck
from torchdiffeq import odeint

from steer_lightning.horizon import GridHorizon
from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import StubSolver
from tests.helpers.problems import CosineField, LinearField, OscillatorField, initial_state, times
from tests.helpers.solving import TIGHT, check_solution, gradient_modes, gradients, solve

GRIDS = [(0.0, 0.3, 1.0, 1.2), (1.2, 1.0, 0.3, 0.0), (-1.0, 2.0)]


def perturbed(**settings):
    horizon = GridHorizon()
    horizon.perturb(EndTimeDraw(**{"b": "auto", "key": 5, **settings}))
    return horizon


def rates_of(horizon, t_eval, batch_size=None):
    """Ratio of stretched to nominal length of each interval under the draw in force."""
    gaps = t_eval.diff()
    return 1.0 + horizon.draw.offsets(gaps, batch_size, clip=True) / gaps


def end_times(horizon, t_eval, batch_size=None):
    return t_eval[:-1] + rates_of(horizon, t_eval, batch_size) * t_eval.diff()


def interval_by_interval(field, y0, starts, ends):
    """Interval ``i`` from its own start to its own end, each from where the last one came out."""
    ys = [y0]
    for start, end in zip(starts, ends, strict=True):
        ys.append(odeint(field, ys[-1], torch.stack([start, end]), **TIGHT)[-1])
    return torch.stack(ys)


@gradient_modes
@pytest.mark.parametrize(("grid", "b"), [(GRIDS[0], "auto"), (GRIDS[1], 0.25), (GRIDS[2], "auto")])
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_each_interval_runs_from_its_own_time_to_its_own_end(gradient, grid, field_class, b):
    field, y0, t_eval = field_class(), initial_state().requires_grad_(), times(*grid)
    horizon = perturbed(b=b)
    ends = end_times(horizon, t_eval)
    ys = solve(horizon, TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
    check_solution(field, y0, ys, interval_by_interval(field, y0, t_eval[:-1], ends), 1e-6)


def test_a_field_without_time_takes_one_smooth_solve():
    stub, field, y0, t_eval = StubSolver(), LinearField(), initial_state(), times(0.0, 0.3, 1.0)
    horizon = perturbed()
    solve(horizon, stub, field, y0, t_eval)
    assert stub.fields == [field]
    stretched = stub.t_evals[0]
    assert stretched[0] == t_eval[0]
    torch.testing.assert_close(stretched.diff(), end_times(horizon, t_eval) - t_eval[:-1])


def test_a_field_with_time_takes_one_solve_an_interval_from_unperturbed_starts():
    stub, y0, t_eval = StubSolver(), initial_state(), times(0.0, 0.3, 1.0)
    solve(perturbed(), stub, CosineField(), y0, t_eval)
    assert [t.tolist() for t in stub.t_evals] == [[0.0, 0.3], [0.3, 1.0]]
    starts = [field.warp.actual(t[0]) for field, t in zip(stub.fields, stub.t_evals, strict=True)]
    assert torch.equal(torch.stack(starts), t_eval[:-1])


def test_states_may_be_tuples():
    field, y0, t_eval = OscillatorField(), (initial_state(), initial_state()), times(0.0, 0.5, 1.0)
    horizon = perturbed()
    total = (end_times(horizon, t_eval) - t_eval[:-1]).sum()
    xs, vs = solve(horizon, TorchdiffeqSolver(**TIGHT), field, y0, t_eval).ys
    assert xs.shape == (3, 3, 2)
    x, v = field.exact(y0, 0.0, total)
    torch.testing.assert_close(xs[-1], x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(vs[-1], v, rtol=1e-7, atol=1e-7)


@gradient_modes
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_end_times_for_each_sample(gradient, field_class):
    field, y0, t_eval = field_class(), initial_state(4).requires_grad_(), times(0.0, 0.3, 1.0)
    horizon = perturbed(scope="sample")
    ends = end_times(horizon, t_eval, batch_size=4)
    assert ends.shape == (4, 2)
    ys = solve(horizon, TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
    singles = [interval_by_interval(field, y0[i : i + 1], t_eval[:-1], ends[i]) for i in range(4)]
    check_solution(field, y0, ys, torch.cat(singles, dim=1), 1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("b", ["auto", 0.2])
def test_ends_stay_within_the_half_width_of_each_interval(grid, b):
    t_eval, epsilon = times(*grid), 0.1
    limit = (1 - epsilon) * t_eval.diff().abs()
    if b != "auto":
        limit = limit.clamp(max=b)
    for key in range(50):
        ends = end_times(perturbed(b=b, epsilon=epsilon, key=key), t_eval)
        assert bool(((ends - t_eval[1:]).abs() <= limit + 1e-12).all())


@pytest.mark.parametrize("draw", [None, EndTimeDraw(0.0)])
def test_without_an_offset_the_solver_gets_what_the_user_gave(draw):
    horizon, stub, field, t_eval = GridHorizon(), StubSolver(), CosineField(), times(0.0, 0.3, 1.0)
    if draw is not None:
        horizon.perturb(draw)
    solve(horizon, stub, field, initial_state(), t_eval)
    assert stub.fields == [field]
    assert stub.t_evals[0] is t_eval
    horizon.solved = False
    assert horizon.rates(OWN, OWN_LENGTHS) is None
    assert horizon.solved is (draw is not None)


@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_a_backward_pass_sees_the_ends_of_its_forward_pass(field_class):
    field, found = field_class(), []
    y0, t_eval = initial_state().requires_grad_(), times(0.0, 0.3, 1.0).requires_grad_()
    for gradient in ("autograd", "adjoint"):
        horizon = perturbed()
        ys = solve(horizon, TorchdiffeqSolver(gradient=gradient, **TIGHT), field, y0, t_eval).ys
        horizon.reset()
        found.append(gradients(ys, y0, t_eval, *field.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    rates = rates_of(perturbed(), t_eval)
    exact = [y0]
    for rate, (start, end) in zip(rates, t_eval.unfold(0, 2, 1), strict=True):
        piece = torch.stack([start, start + rate * (end - start)])
        exact.append(odeint(field, exact[-1], piece, **TIGHT)[-1])
    expected = gradients(torch.stack(exact), y0, t_eval, *field.parameters())
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)


def test_what_is_in_force_is_the_mean_stretch_of_the_last_solve():
    horizon, t_eval = perturbed(), times(0.0, 0.3, 1.0)
    assert horizon.in_force() == {"stretch": 1.0}
    solve(horizon, TorchdiffeqSolver(), CosineField(), initial_state(), t_eval)
    rates = rates_of(horizon, t_eval)
    assert horizon.in_force() == {"stretch": pytest.approx(float(rates.mean()))}
    assert copy.deepcopy(horizon).in_force() == {"stretch": 1.0}
    horizon.reset()
    assert horizon.in_force() == {"stretch": 1.0}
    assert horizon.describe() == "each interval of t_eval"


def test_a_grid_has_no_times_of_its_own():
    solver, field, y0 = TorchdiffeqSolver(), CosineField(), initial_state()
    with pytest.raises(ValueError, match="Expected `t_eval` with a GridHorizon"):
        solve(GridHorizon(), solver, field, y0)
    block, message = (
        ODEBlock(field, horizon=GridHorizon()),
        "Expected no `t_start` or `t_end` with",
    )
    for name in ("t_start", "t_end"):
        with pytest.raises(ValueError, match=message):
            block(y0, times(0.0, 1.0), **{name: times(2.0, 2.0, 2.0)})


@pytest.mark.parametrize("t_eval", [(0.0, 1.0, 1.0), (0.0, 2.0, 1.0), (0.0,)])
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_bad_times_are_refused_while_a_draw_is_in_force(t_eval, field_class):
    with pytest.raises(ValueError, match="Expected `t_eval`"):
        solve(perturbed(), TorchdiffeqSolver(), field_class(), initial_state(), times(*t_eval))


SHARED = times(0.0, 0.3, 1.0)
OWN = torch.stack([times(0.0, 0.25, 1.0, 1.5), times(2.0, 4.0, 4.0, 4.0), times(*[3.0] * 4)])
OWN_LENGTHS = torch.tensor([4, 2, 1])
PADDING = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)


def shared(n_samples=2, n_padded=0):
    """Samples of one grid of three times, with padding."""
    series = torch.cat([SHARED, SHARED[-1:].expand(n_padded)]).expand(n_samples, -1)
    return series, torch.full((n_samples,), 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n_padded", [0, 2])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_samples_of_one_grid_have_the_ends_of_a_solve_over_it(reverse, n_padded, scope):
    rates = perturbed(scope=scope).rates(*shared(3, n_padded), reverse)
    t_eval = SHARED.flip(0) if reverse else SHARED
    expected = rates_of(perturbed(scope=scope), t_eval, 3)
    assert len(expected.unique()) == (6 if scope == "sample" else 2)
    torch.testing.assert_close(rates[:, :2], expected.expand(3, 2))
    assert bool((rates[:, 2:] == 1.0).all())


@pytest.mark.parametrize("scope", ["batch", "rank", "sample"])
@pytest.mark.parametrize("reverse", [False, True])
def test_samples_of_other_grids_have_ends_of_their_own(scope, reverse):
    rates = perturbed(scope=scope).rates(OWN, OWN_LENGTHS, reverse)
    assert rates.shape == (3, 3)
    assert bool((rates[PADDING] == 1.0).all())
    assert len(rates[~PADDING].unique()) == 4
    assert not bool((rates[~PADDING] == 1.0).any())
    wider = torch.cat([OWN, OWN[:, -1:].expand(-1, 3)], dim=1)  # padding does not move an end
    assert torch.equal(perturbed(scope=scope).rates(wider, OWN_LENGTHS, reverse)[:, :3], rates)
    horizon = perturbed(scope=scope)
    mean = float(horizon.rates(OWN, OWN_LENGTHS)[~PADDING].mean())
    assert horizon.in_force() == {"stretch": pytest.approx(mean)}


@pytest.mark.parametrize("b", ["auto", 0.2])
@pytest.mark.parametrize("reverse", [False, True])
def test_stretches_stay_within_the_half_width_of_each_interval(b, reverse):
    epsilon = 0.1
    gaps = torch.stack([times(0.25, 0.75, 0.5), times(2.0, 0.0, 0.0), times(0.0, 0.0, 0.0)])
    if reverse:
        gaps[0] = gaps[0].flip(0)
    limit = (1 - epsilon) * gaps
    if b != "auto":
        limit = limit.clamp(max=b)
    widest = torch.zeros_like(gaps)
    for key in range(200):
        rates = perturbed(b=b, epsilon=epsilon, key=key).rates(OWN, OWN_LENGTHS, reverse)
        widest = torch.maximum(widest, ((rates - 1) * gaps).abs())
    assert bool((widest <= limit + 1e-12).all())
    assert bool((widest >= 0.9 * limit).all())


@pytest.mark.parametrize("reverse", [False, True])
def test_intervals_are_numbered_as_they_are_unrolled_and_the_far_end_moves(reverse):
    horizon = GridHorizon()
    horizon.perturb(FixedOffset(0.125))
    rates = horizon.rates(OWN, OWN_LENGTHS, reverse)
    if reverse:  # the earlier end moves later: nearer to where its interval starts
        expected = [[0.75, 1 - 0.125 / 0.75, 0.5], [1 - 0.0625, 1.0, 1.0], [1.0] * 3]
    else:
        expected = [[1.5, 1 + 0.125 / 0.75, 1.25], [1.0625, 1.0, 1.0], [1.0] * 3]
    torch.testing.assert_close(rates, torch.tensor(expected).double())


@pytest.mark.parametrize("draw", [EndTimeDraw("auto"), FixedOffset(0.1)])
def test_samples_of_one_time_have_nothing_to_stretch(draw):
    horizon = GridHorizon()
    horizon.perturb(draw)
    for n_times in (1, 3):
        assert horizon.rates(torch.ones(2, n_times), torch.tensor([1, 1])) is None
    assert horizon.in_force() == {"stretch": 1.0}


def test_stretches_are_of_the_dtype_of_the_times():
    rates = perturbed().rates(OWN.float(), OWN_LENGTHS)
    assert rates.dtype == torch.float32
    torch.testing.assert_close(rates, perturbed().rates(OWN, OWN_LENGTHS).float())


@pytest.mark.parametrize("b", ["auto", 0.1, 0.25])  # the last one is cut in some gaps
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("field", [CosineField(), LinearField()], ids=lambda f: type(f).__name__)
def test_gradients_in_the_times_are_those_of_finite_differences(field, scope, b):
    horizon, y0 = perturbed(b=b, scope=scope), initial_state()

    def solved(t_eval):
        return solve(horizon, FixedGridSolver("rk4", 3), field, y0, t_eval).ys

    def stretched(ends):
        own = torch.stack([times(0.0, 0.2, 0.9, 1.3), times(0.1, 0.5, 0.7, 1.5)]) + ends
        return horizon.rates(own, torch.tensor([4, 4]))

    assert gradcheck(solved, times(0.0, 0.2, 1.3).requires_grad_())
    assert gradcheck(stretched, torch.zeros(2, 4, dtype=torch.float64, requires_grad=True))
