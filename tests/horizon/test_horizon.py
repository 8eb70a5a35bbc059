"""Spans, against the plain reference: the solve that ends at T, written by hand."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torchdiffeq import odeint

from steer_lightning.horizon import GridHorizon, SpanHorizon
from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.nn import ODEBlock
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import RecordingField, StubSolver
from tests.helpers.problems import CosineField, initial_state, times
from tests.helpers.solving import TIGHT, check_solution, gradient_modes, gradients, solve

SPANS = [(0.0, 1.0), (0.5, 2.0), (2.0, 0.5)]


def reference(field, y0, *ts):
    return odeint(field, y0, times(*ts), **TIGHT)


@gradient_modes
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("offset", [-0.3, 0.4])
@pytest.mark.parametrize("reverse", [False, True])
def test_solves_end_or_begin_at_the_moved_end(gradient, span, offset, reverse):
    field, y0 = CosineField(), initial_state().requires_grad_()
    horizon, (t0, t1) = SpanHorizon(*span), span
    horizon.perturb(FixedOffset(offset))
    assert horizon.in_force() == {"end_time": pytest.approx(t1 + offset)}
    order, given = -1 if reverse else 1, (t0, 0.75 * t0 + 0.25 * t1, t1)
    solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
    ys = solve(horizon, solver, field, y0, times(*given[::order])).ys
    moved = (t0, 0.75 * t0 + 0.25 * (t1 + offset), t1 + offset)  # in between too
    check_solution(field, y0, ys, reference(field, y0, *moved[::order]))


@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("span", SPANS)
def test_a_fixed_grid_takes_the_same_number_of_steps_to_the_moved_end(method, span):
    field, y0, solver = CosineField(), initial_state(), FixedGridSolver(method, 5)
    horizon = SpanHorizon(*span)
    horizon.perturb(FixedOffset(0.4))
    expected = solver.solve(field, y0, times(span[0], span[1] + 0.4))
    found = solve(horizon, solver, field, y0)
    torch.testing.assert_close(found.ys, expected.ys, rtol=1e-12, atol=1e-12)
    assert found.stats == expected.stats


@gradient_modes
@pytest.mark.parametrize("t_eval", [None, (1.0, 0.0)])
def test_an_end_time_for_each_sample_is_one_solve_of_its_own(gradient, t_eval):
    field, y0 = CosineField(), initial_state(4).requires_grad_()
    horizon = SpanHorizon(0.0, 1.0)
    draw = EndTimeDraw(0.5, scope="sample", key=3)
    horizon.perturb(draw)
    recorded = RecordingField(field)
    solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
    ys = solve(horizon, solver, recorded, y0, None if t_eval is None else times(*t_eval)).ys
    ends = 1.0 + draw.offsets(times(1.0), 4, clip=False)[:, 0]
    assert {t.shape for t in recorded.times} == {(4,)}
    singles = [
        reference(field, y0[i : i + 1], *((0.0, end) if t_eval is None else (end, 0.0)))
        for i, end in enumerate(ends.tolist())
    ]
    check_solution(field, y0, ys, torch.cat(singles, dim=1))
    assert horizon.in_force() == {"end_time": pytest.approx(float(ends.mean()))}


@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_samples_may_start_at_times_of_their_own(offset):
    field, y0, t_start = CosineField(), initial_state(), times(0.0, 0.7, -1.0)
    horizon = SpanHorizon(0.0, 0.5)
    horizon.perturb(FixedOffset(offset))
    ys = solve(horizon, TorchdiffeqSolver(**TIGHT), field, y0, t_start=t_start).ys
    expected = field.exact(y0, t_start, t_start + 0.5 + offset)
    torch.testing.assert_close(ys[-1], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("draw", [None, EndTimeDraw(0.0)])
def test_without_an_offset_the_solver_gets_what_the_user_gave(draw):
    horizon, stub, field, y0 = SpanHorizon(0.0, 1.0), StubSolver(), CosineField(), initial_state()
    if draw is not None:
        horizon.perturb(draw)
    solve(horizon, stub, field, y0)
    assert stub.fields == [field]
    assert stub.y0s[0] is y0
    assert torch.equal(stub.t_evals[0], times(0.0, 1.0))


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("then", ["reset", "perturb"])
def test_a_backward_pass_sees_the_end_time_of_its_forward_pass(scope, then):
    field, y0, found = CosineField(), initial_state().requires_grad_(), []
    for solver in (
        TorchdiffeqSolver(gradient="autograd", **TIGHT),
        TorchdiffeqSolver(gradient="adjoint", **TIGHT),
        FixedGridSolver(n_steps=64, checkpoint=True),
    ):
        horizon = SpanHorizon(0.0, 1.0)
        horizon.perturb(EndTimeDraw(0.5, scope=scope, key=1))
        ys = solve(horizon, solver, field, y0).ys
        if then == "reset":
            horizon.reset()
        else:
            horizon.perturb(EndTimeDraw(0.5, scope=scope, key=2))
        found.append(gradients(ys, y0, field.a))
        torch.testing.assert_close(found[-1], found[0], rtol=1e-6, atol=1e-6)


@gradient_modes
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_a_learnable_end_has_the_gradient_of_finite_differences(gradient, reverse, offset):
    field, y0, eps = CosineField(), initial_state(), 1e-5
    t_eval = times(1.0, 0.0) if reverse else None
    solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
    horizon = SpanHorizon(0.0, 1.0, learn_t1=True).double()
    horizon.perturb(FixedOffset(offset))

    def loss(t1):
        ts = (t1 + offset, 0.0) if reverse else (0.0, t1 + offset)
        return float(field.exact(y0, *ts).square().sum().detach())

    with torch.no_grad():
        horizon.learned_t1.fill_(1.2)
    ys = solve(horizon, solver, field, y0, t_eval).ys
    found = torch.autograd.grad(ys[-1].square().sum(), horizon.learned_t1)[0]
    expected = (loss(1.2 + eps) - loss(1.2 - eps)) / (2 * eps)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert horizon.in_force() == {"end_time": pytest.approx(1.2 + offset)}


@pytest.mark.parametrize(("b", "t1"), [("auto", 1.2), (0.5, 1.2), (0.5, 0.4)])  # the last is cut
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_a_drawn_end_moves_with_the_learned_one(b, t1, scope):
    horizon, field = SpanHorizon(0.0, 1.0, learn_t1=True).double(), CosineField()
    horizon.perturb(EndTimeDraw(b, scope=scope, key=1))

    def solved(learned):
        del horizon.learned_t1
        horizon.learned_t1 = learned
        return solve(horizon, FixedGridSolver("rk4", 3), field, initial_state()).ys

    assert gradcheck(solved, torch.tensor(t1, dtype=torch.float64, requires_grad=True))


def test_a_learnable_end_has_one_solve_with_gradients_and_without():
    field, y0 = CosineField(), initial_state()
    horizon = SpanHorizon(0.0, 1.0, learn_t1=True)
    solver = AdaptiveSolver(rtol=1e-2, first_step=0.3)
    with torch.no_grad():
        horizon.learned_t1.fill_(1.7)
        expected = solve(horizon, solver, field, y0).ys
    assert torch.equal(solve(horizon, solver, field, y0).ys, expected)


def test_a_learnable_end_keeps_steer_around_itself():
    horizon = SpanHorizon(0.0, 1.0, learn_t1=True)
    with torch.no_grad():
        horizon.learned_t1.fill_(0.25)
    horizon.perturb(EndTimeDraw(0.5, key=1))  # b is cut to what is left
    assert 0.0 < horizon.in_force()["end_time"] < 0.5
    assert horizon.describe() == "[0, 1] learned"


def test_b_must_fit_and_a_refused_draw_changes_nothing():
    horizon = SpanHorizon(0.5, 1.0)
    horizon.check(EndTimeDraw(0.49))
    horizon.perturb(FixedOffset(0.1))
    with pytest.raises(ValueError, match=r"\|t1 - t0\| = 0.5, .* but got b = 0.5"):
        horizon.perturb(EndTimeDraw(0.5))
    assert horizon.in_force() == {"end_time": pytest.approx(1.1)}
    assert horizon.describe() == "[0.5, 1]"


@pytest.mark.parametrize("draw", [FixedOffset(0.2), EndTimeDraw(0.5, scope="sample", key=1)])
def test_the_adjoint_refuses_a_closure_while_an_end_time_is_in_force(draw):
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    horizon = SpanHorizon(0.0, 1.0)
    horizon.perturb(draw)
    with pytest.raises(TypeError, match=r"nn.Module for gradient='adjoint'"):
        solve(horizon, TorchdiffeqSolver(gradient="adjoint"), lambda t, y: a * y, initial_state())


@pytest.mark.parametrize("horizon", [SpanHorizon(), GridHorizon()], ids=["span", "grid"])
def test_a_scalar_state_has_no_samples_to_draw_for(horizon):
    horizon.perturb(EndTimeDraw(0.5, scope="sample"))
    y0 = torch.ones((), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch along axis 0 for scope='sample', but got a scal"):
        solve(horizon, FixedGridSolver(), lambda t, y: -y, y0, times(0.0, 1.0))
    horizon.perturb(EndTimeDraw(0.5, scope="batch"))
    assert solve(horizon, FixedGridSolver(), lambda t, y: -y, y0, times(0.0, 1.0)).ys.shape == (2,)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("share", [0.5, 1.25])
def test_evaluation_ends_where_it_is_told_and_training_does_not(span, share):
    (t0, t1), field, y0 = span, CosineField(), initial_state()
    end = t0 + share * (t1 - t0)
    block = ODEBlock(field, TorchdiffeqSolver(**TIGHT), span, eval_end_time=end)
    assert block.horizon.describe() == f"[{t0:g}, {t1:g}], evaluated at {end:g}"
    for draw, moved in ((None, t1), (EndTimeDraw(0.0), t1), (FixedOffset(0.25), t1 + 0.25)):
        if draw is not None:
            block.horizon.perturb(draw)
        torch.testing.assert_close(block.train()(y0), field.exact(y0, t0, moved))
        expected = field.exact(y0, t0, end if moved == t1 else moved)
        torch.testing.assert_close(block.eval()(y0), expected)
    block.horizon.reset()
    asked = block(y0, times(t0, t1))[-1]  # given times are as they are
    torch.testing.assert_close(asked, field.exact(y0, t0, t1))
    asked = block(y0, t_end=torch.full((len(y0),), t1, dtype=y0.dtype))
    torch.testing.assert_close(asked, field.exact(y0, t0, t1))


@pytest.mark.parametrize("rate", [-10.0, 10.0])
def test_a_learnable_end_stays_in_its_range_and_finds_its_way_back(rate):
    horizon = SpanHorizon(0.0, 1.0, learn_t1=True, t1_range=(0.5, 1.5))
    block = ODEBlock(CosineField(), FixedGridSolver(), horizon=horizon)
    (t1,) = (p.detach() for p in horizon.parameters())
    edge = 0.5 if rate < 0 else 1.5
    with torch.no_grad():
        t1.fill_(rate)
    block.eval()(initial_state())
    assert (float(t1), horizon.end_time) == (rate, edge)  # evaluation writes nothing
    block.train()(initial_state()).square().sum().backward()
    assert float(t1) == edge
    assert float(horizon.learned_t1.grad) != 0.0
    assert horizon.describe() == "[0, 1] learned in [0.5, 1.5]"
    horizon.perturb(FixedOffset(0.25))  # a draw may leave it
    assert horizon.in_force() == {"end_time": edge + 0.25}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t0": 1.0, "t1": 1.0}, r"Expected finite t0 != t1, but got t0 = 1.0, t1 = 1.0"),
        ({"t1": math.inf}, r"Expected finite t0 != t1, .* t1 = inf"),
        ({"t0": math.nan}, r"Expected finite t0 != t1, .* t0 = nan"),
        ({"eval_end_time": -0.5}, r"on the side of t0 = 0 where t1 = 1 lies, but got -0.5"),
        ({"eval_end_time": 0.0}, r"on the side of t0 = 0 .* but got 0"),
        ({"eval_end_time": math.inf}, r"on the side of t0 = 0 .* but got inf"),
        ({"learn_t1": True, "t1_range": (0.0, 2.0)}, r"`t1_range` and .* but got 0"),
        ({"learn_t1": True, "t1_range": (1.2, 2.0)}, r"\(smallest, largest\), around t1 = 1 and"),
        ({"learn_t1": True, "t1_range": (0.5,)}, r"smallest, largest"),
        ({"t1_range": (0.5, 2.0)}, r"but got \(0.5, 2.0\) with learn_t1=False"),
        ({"learn_t1": True, "t0": 1.7e9, "t1": 1.7e9 + 10.0}, r"that float32 tells apart from"),
        ({"learn_t1": True, "eval_end_time": 0.5}, r"but got both: .* Leave eval_end_time = 0.5"),
    ],
)
def test_end_times_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SpanHorizon(**settings)


def test_epsilon_does_not_cut_a_number_on_a_span():
    horizon, ends = SpanHorizon(), []
    for key in range(20):
        horizon.perturb(EndTimeDraw(0.8, epsilon=0.9, key=key))
        ends.append(horizon.in_force()["end_time"])
    assert max(abs(end - 1.0) for end in ends) > 0.5
