"""Dormand-Prince with dense output, against closed forms, scipy and torchdiffeq."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp
from torch import nn
from torchdiffeq import odeint

from steer_lightning.solvers import (
    DenseSolver,
    NFEBudgetExceededError,
    NonFiniteStateError,
    SolveStats,
    StepSizeUnderflowError,
)
from steer_lightning.solvers import dense as module
from tests.helpers.models import RecordingField, seeded
from tests.helpers.problems import (
    CosineField,
    LinearField,
    OscillatorField,
    initial_state,
    times,
)

SPANS = [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)]
TIGHT = DenseSolver(rtol=1e-10, atol=1e-10)


def grids(t0, t1, n_samples=3, n_times=20):
    """Random times of each sample, unsorted, and both ends."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n_samples, n_times, generator=generator, dtype=torch.float64)
    return torch.cat([times(t0, t1).expand(n_samples, 2), t0 + (t1 - t0) * u], dim=1)


def exact(field, y0, t0, t):
    """Closed form at the times ``t`` of each sample, shape ``(B, T, L)``."""
    rows = [torch.cat([field.exact(y0[i : i + 1], t0, s) for s in t[i]]) for i in range(len(y0))]
    return torch.stack(rows)


def test_the_coefficients_are_scipys():
    assert np.array_equal(module._C, [*RK45.C, 1.0])
    for row, theirs in zip(module._A, [*RK45.A, RK45.B], strict=False):
        assert row == tuple(theirs[: len(row)])
    np.testing.assert_allclose(module._ERROR, -RK45.E, rtol=1e-13)
    assert np.array_equal(module._INTERPOLANT, RK45.P)
    np.testing.assert_allclose(np.sum(module._INTERPOLANT, axis=1)[:6], RK45.B, atol=1e-15)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_closed_forms_in_both_directions_at_any_times(field_class, span):
    field, y0, t = field_class(), initial_state(), grids(*span)
    ys = TIGHT.solve(field, y0, times(*span)).at(t)
    assert ys.shape == (3, 22, 2)
    assert torch.equal(ys[:, 0], y0)
    torch.testing.assert_close(ys, exact(field, y0, span[0], t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_error_follows_the_tolerance_also_between_the_steps(tolerance):
    field, y0, t = CosineField(), initial_state(), grids(0.0, 6.0, n_times=200)
    ys = DenseSolver(tolerance, tolerance).solve(field, y0, times(0.0, 6.0)).at(t)
    error = float((ys - exact(field, y0, 0.0, t)).detach().abs().max())
    assert tolerance < error < 50 * tolerance


def test_a_step_is_of_order_five_and_its_interpolant_of_order_four():
    """One step of length h: local errors fall with the sixth and the fifth power of h."""
    field, y0, errors = CosineField(), initial_state(), []
    for h in (0.2, 0.1):
        loose = DenseSolver(rtol=1e6, atol=1e6)
        loose._first_step = lambda *args, h=h: h
        solution = loose.solve(field, y0, times(0.5, 0.5 + h))
        assert len(solution.knots) == 2
        t = times(0.5 + h, 0.5 + 0.4 * h).expand(3, 2)
        errors.append((solution.at(t) - exact(field, y0, 0.5, t)).detach().abs().amax((0, 2)))
    order = (errors[0] / errors[1]).log2()
    assert order[0] == pytest.approx(6.0, abs=0.4)
    assert order[1] == pytest.approx(5.0, abs=0.4)


def test_equals_scipy_at_the_same_tolerance():
    """Same pair and interpolant, so that errors, not only solutions, are alike."""

    def f(t, y):
        return np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0]])

    def field(t, y):
        x, v = y.unbind(1)
        return torch.stack([v, (1 - x.square()) * v - x], dim=1)

    y0, t = times(2.0, 0.0), torch.linspace(0.0, 9.0, 50, dtype=torch.float64)
    theirs = solve_ivp(f, (0.0, 9.0), y0.numpy(), rtol=1e-6, atol=1e-6, dense_output=True)
    solution = DenseSolver(1e-6, 1e-6).solve(field, y0[None], times(0.0, 9.0))
    expected = torch.from_numpy(theirs.sol(t.numpy()).T)
    torch.testing.assert_close(solution.at(t[None])[0], expected, rtol=1e-4, atol=1e-4)
    assert solution.stats.accepted == pytest.approx(len(theirs.t) - 1, abs=3)
    torch.testing.assert_close(
        solution.knots[:5], torch.from_numpy(theirs.t[:5]), rtol=1e-9, atol=0.0
    )


class Net(nn.Module):
    """A small network, in float64, that ignores time."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(2, 5, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.a) @ self.b


@pytest.mark.parametrize("span", SPANS)
def test_values_and_gradients_are_those_of_torchdiffeqs_dopri5(span):
    field, y0 = Net(), initial_state().requires_grad_()
    t = torch.linspace(*span, 7, dtype=torch.float64)
    found = TIGHT.solve(field, y0, times(*span)).at(t.expand(3, -1))
    expected = odeint(field, y0, t, rtol=1e-10, atol=1e-10, method="dopri5").transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    inputs, weights = [y0, *field.parameters()], torch.linspace(0.5, 1.0, 42).double()
    grads = [
        torch.autograd.grad((ys.reshape(-1) * weights).sum(), inputs) for ys in (found, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)


def test_gradcheck_in_state_parameters_and_times_read():
    field = CosineField()
    del field.a

    def outputs(y0, a, t):
        field.a = a
        return TIGHT.solve(field, y0, times(0.0, 1.0)).at(t)

    a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    t = times(0.3, 0.75).expand(2, 2).clone().requires_grad_()
    y0 = initial_state(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(outputs, (y0, a, t), atol=1e-6)


def test_the_work_does_not_depend_on_the_times_asked_for():
    field, solver = RecordingField(CosineField()), DenseSolver()
    solution = solver.solve(field, initial_state(), times(0.0, 6.0))
    nfe = len(field.times)
    for n_times in (1, 1000):
        solution.at(grids(0.0, 6.0, n_times=n_times))
    assert len(field.times) == nfe == solution.stats.nfe_forward
    assert all(t.shape == () and t.dtype == torch.float64 for t in field.times)


def test_work_is_counted_and_added_up():
    # One slope at the start, one to guess the first step, six a step.
    field, stats = CosineField(), SolveStats()
    once = DenseSolver(1e-6, 1e-6).solve(field, initial_state(), times(0.0, 20.0)).stats
    assert once.nfe_forward == 2 + 6 * (once.accepted + once.rejected)
    assert once.rejected > 0
    for _ in range(2):
        solution = DenseSolver(1e-6, 1e-6).solve(
            field, initial_state(), times(0.0, 20.0), stats=stats
        )
        assert solution.stats is stats
    assert stats.nfe_forward == 2 * once.nfe_forward
    assert len(solution.knots) == once.accepted + 1


def test_backpropagation_evaluates_nothing_again():
    y0 = initial_state().requires_grad_()
    solution = DenseSolver().solve(CosineField(), y0, times(0.0, 2.0))
    solution.at(grids(0.0, 2.0)).sum().backward()
    assert solution.stats.nfe_backward == 0


def test_a_case_counted_by_hand():
    # The slope is constant, nothing is an error: the first step of min(100 h0, h1), and tenfold.
    solution = DenseSolver(1.0, 1.0).solve(
        lambda t, y: torch.ones_like(y), torch.zeros(1, 1), torch.tensor([0.0, 0.1])
    )
    torch.testing.assert_close(solution.knots, times(0.0, 1e-4, 1.1e-3, 1.11e-2, 0.1))
    assert solution.stats == SolveStats(nfe_forward=2 + 4 * 6, accepted=4)


def test_a_field_of_zero_is_crossed():
    solution = DenseSolver().solve(lambda t, y: 0.0 * y, initial_state(), times(0.0, 1.0))
    assert torch.equal(solution.at(times(0.5).expand(3, 1))[:, 0], initial_state())


def test_the_last_step_ends_where_it_is_asked_to():
    for t1 in (0.1, 1 / 3, 7.7):
        solution = DenseSolver().solve(CosineField(), initial_state(), times(0.0, t1))
        assert solution.knots[[0, -1]].tolist() == [0.0, t1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_their_dtype_and_times_theirs(dtype):
    def field(t, y):
        assert (t.dtype, y.dtype) == (torch.float64, dtype)
        return -y

    solution = DenseSolver().solve(field, initial_state(dtype=dtype), times(0.0, 1.0))
    assert solution.knots.dtype == torch.float64
    assert solution.at(times(0.5).expand(3, 1)).dtype == dtype


def test_the_pieces_join_also_under_autocast():
    net = seeded(nn.Linear, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        solution = DenseSolver(0.1, 0.1).solve(
            lambda t, y: net(y).tanh(), initial_state(dtype=torch.float32), times(0.0, 9.0)
        )
    starts, ends = solution.coefficients[1:, :, 0], solution.coefficients[:-1].sum(2)
    assert len(starts) >= 2
    assert starts.dtype == torch.float32
    torch.testing.assert_close(ends, starts, rtol=1e-5, atol=1e-6)


def test_knots_are_of_the_devices_precision(monkeypatch):
    monkeypatch.setattr(module, "has_float64", lambda device: False)
    y0, t = initial_state(dtype=torch.float32), torch.tensor([0.0, 1.0])
    solution = DenseSolver(1e-6, 1e-6).solve(lambda t, y: -y, y0, t)
    assert solution.knots.dtype == torch.float32
    ys = solution.at(t.expand(3, 2))
    torch.testing.assert_close(ys[:, 1], y0 / math.e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [-0.1, -0.001, 1.001, float("nan")])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_times_outside_are_refused(t, span):
    solution = DenseSolver().solve(CosineField(), initial_state(), times(*span))
    asked = torch.full((3, 4), 0.5, dtype=torch.float64)
    asked[1, 2] = t
    with pytest.raises(ValueError, match=rf"Expected times between {span[0]:g} and .* got {t:g}"):
        solution.at(asked)


def test_rounding_does_not_put_a_time_outside():
    solution = DenseSolver().solve(CosineField(), initial_state(), times(0.0, 0.3))
    found = solution.at(times(0.1 + 0.2, 0.3).expand(3, 2))
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (1, 3, 4)])
def test_times_are_one_grid_for_each_sample(shape):
    solution = DenseSolver().solve(CosineField(), initial_state(), times(0.0, 1.0))
    with pytest.raises(ValueError, match=r"shape \(B, T\) for B = 3 samples, but got shape"):
        solution.at(torch.zeros(shape))


def test_the_budget_stops_a_solve():
    field, stats = RecordingField(CosineField()), SolveStats()
    solver = DenseSolver(max_nfe=20)
    with pytest.raises(NFEBudgetExceededError, match=r"needs more than max_nfe = 20 .* t = .*"):
        solver.solve(field, initial_state(), times(0.0, 50.0), stats=stats)
    assert len(field.times) == stats.nfe_forward == 20
    used = DenseSolver().solve(CosineField(), initial_state(), times(0.0, 1.0)).stats
    DenseSolver(max_nfe=used.nfe_forward).solve(
        CosineField(), initial_state(), times(0.0, 1.0), stats=stats
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_refused(bad):
    y0 = initial_state()
    y0[1, 1] = bad
    with pytest.raises(NonFiniteStateError, match="NaN or infinite at t = 0 in the forward solve"):
        DenseSolver().solve(CosineField(), y0, times(0.0, 1.0))


@pytest.mark.parametrize(("after", "t"), [(1e-9, "0"), (0.5, "0.5")])
def test_a_field_that_turns_nan_is_refused_where_it_does(after, t):
    def field(t, y):
        return -y + (math.nan if t > after else 0.0)

    with pytest.raises(NonFiniteStateError, match=rf"at t = {t} in"):
        DenseSolver().solve(field, initial_state(), times(0.0, 1.0))


def test_an_overflow_in_a_step_too_long_is_tried_again_with_a_shorter_one():
    y0, trials = 100.0 * initial_state(), []

    def field(t, y):
        trials.append(y)
        return -y.pow(3)

    solver = DenseSolver(1e-8, 1e-8)
    solver._first_step = lambda *args: 1.0
    y = solver.solve(field, y0, times(0.0, 1.0)).at(times(1.0).expand(3, 1))[:, 0]
    assert not all(bool(trial.isfinite().all()) for trial in trials)
    torch.testing.assert_close(y, y0 / (1.0 + 2.0 * y0.square()).sqrt(), rtol=1e-6, atol=0.0)


def test_steps_that_no_longer_advance_time_are_refused():
    """A jump as large as the state, at a time that no step hits."""

    def field(t, y):
        return torch.where(t < 1.0 / 3.0, 1.0, 1e20) * torch.ones_like(y)

    with pytest.raises(StepSizeUnderflowError, match=r"dt = .* no longer advances t = 0\.333"):
        DenseSolver(max_nfe=None).solve(field, initial_state(), times(0.0, 1.0))


@pytest.mark.parametrize(
    ("y0", "t_span", "error", "message"),
    [
        (initial_state()[0], times(0.0, 1.0), ValueError, r"\(B, L\) .* got \(2,\) and 2 times"),
        (initial_state(), times(0.0, 0.5, 1.0), ValueError, r"3 times\. .* solution\.at"),
        ((initial_state(),) * 2, times(0.0, 1.0), ValueError, "got tuple and 2 times"),
        (initial_state(), times(1.0, 1.0), ValueError, "strictly increasing"),
        (initial_state()[:0], times(0.0, 1.0), ValueError, "batch of at least one sample"),
        (initial_state().half(), times(0.0, 1.0), TypeError, "but got torch.float16"),
    ],
)
def test_bad_problems_are_refused_before_anything_is_evaluated(y0, t_span, error, message):
    field = RecordingField(OscillatorField())
    with pytest.raises(error, match=message):
        DenseSolver().solve(field, y0, t_span)
    assert not field.times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 0.0}, r"Expected `rtol` to be finite and > 0, but got 0\.0"),
        ({"atol": float("nan")}, "Expected `atol` to be finite and > 0, but got nan"),
        ({"atol": float("inf")}, "Expected `atol` to be finite and > 0, but got inf"),
        ({"max_nfe": 0}, "Expected `max_nfe` to be None or >= 1, but got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DenseSolver(**settings)


def test_repr_names_what_decides_the_numbers():
    assert repr(DenseSolver(1e-3, 1e-4)) == "DenseSolver(rtol=0.001, atol=0.0001)"
