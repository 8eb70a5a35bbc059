"""Each penalty against quadrature, finite differences, or a formula written again."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, quad, solve_ivp
from torch import nn
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian
from torch.func import functional_call

from steer_lightning import penalize, penalty, steer
from steer_lightning.nn import ODEBlock
from steer_lightning.nn.probes import Probed, Probing
from steer_lightning.penalties import (
    Acceleration,
    JacobianNorm,
    KineticEnergy,
    LocalError,
    Penalty,
    Stiffness,
    TrajectoryPolynomial,
)
from steer_lightning.penalties.base import integrated_square, mean_rate
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver
from steer_lightning.utils.schedule import Schedule
from tests.helpers.problems import CosineField

SPAN = (0.3, 1.7)


class Twisted(nn.Module):
    """A field that is nonlinear, and has time."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, t, y):
        x, v = y.unbind(-1)
        return torch.stack([self.a * torch.sin(t * v) + 0.3 * x, torch.cos(x) - t * v], dim=-1)


FIELD = Twisted()
START = np.array([0.4, -0.7])


def trajectory():
    """States on the solution from :data:`START`, to 1e-12."""

    def f(t, y):
        return FIELD(torch.tensor(t), torch.tensor(y)[None])[0].detach().numpy()

    return solve_ivp(f, SPAN, START, "DOP853", rtol=1e-12, atol=1e-13, dense_output=True).sol


SOLUTION = trajectory()


def at(*times, field=FIELD, steps=None):
    """What a solve over the span shows at some times, as two equal samples."""

    def state(t):
        return torch.tensor(SOLUTION(t)).repeat(2, 1)

    t = tuple(torch.tensor(t, dtype=torch.float64) for t in times)
    ends = tuple(torch.tensor(t, dtype=torch.float64) for t in SPAN)
    generator = torch.Generator().manual_seed(1)
    return Probed(
        field, t, tuple(map(state, times)), ends, tuple(map(state, SPAN)), SPAN[1] - SPAN[0],
        generator, steps, shares=tuple((x - SPAN[0]) / (SPAN[1] - SPAN[0]) for x in times),
    )  # fmt: skip


def speed(t, order, h=1e-3):
    """Derivative of the solution by central differences."""
    stencil = {
        1: ([-1, 1], [-0.5, 0.5]),
        2: ([-1, 0, 1], [1, -2, 1]),
        3: ([-2, -1, 1, 2], [-0.5, 1, -1, 0.5]),
    }
    places, weights = stencil[order]
    return sum(w * SOLUTION(t + i * h) for i, w in zip(places, weights, strict=True)) / h**order


@pytest.mark.parametrize(
    ("which", "rate", "rel"),
    [
        (KineticEnergy(1.0), lambda t: 0.5 * np.mean(speed(t, 1) ** 2), 1e-5),
        (Acceleration(1.0), lambda t: np.mean(speed(t, 2) ** 2), 1e-4),
        (Acceleration(1.0, order=3), lambda t: np.mean(speed(t, 3) ** 2), 1e-3),
    ],
)
def test_one_point_forms_are_the_integral_in_the_mean_over_times(which, rate, rel):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    times = 0.5 * (SPAN[0] + SPAN[1]) + 0.49 * (SPAN[1] - SPAN[0]) * nodes
    values = [float(which.value(at(t)).detach()) for t in times]
    found = np.dot(weights, values) / 2.0
    low, high = (0.5 * (SPAN[0] + SPAN[1]) + s * 0.49 * (SPAN[1] - SPAN[0]) for s in (-1, 1))
    expected = quad(rate, low, high, limit=200)[0] / 0.98
    assert found == pytest.approx(expected, rel=rel)


def test_the_jacobians_norm():
    probed = at(0.9)
    y = probed.y[0][0]
    matrix = jacobian(lambda y: FIELD(probed.t[0], y), y)
    e = torch.empty(2, 2, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(1))
    expected = (SPAN[1] - SPAN[0]) * (e @ matrix).square().mean()
    assert float(JacobianNorm(1.0).value(probed)) == pytest.approx(float(expected), rel=1e-12)
    draws = [float(JacobianNorm(1.0).value(probed)) for _ in range(500)]  # the stream goes on
    mean = (SPAN[1] - SPAN[0]) * float(matrix.square().sum()) / 2.0
    assert abs(np.mean(draws) - mean) < 3.0 * np.std(draws) / 500**0.5


def test_probe_times_are_uniform_inside_the_span_and_sorted():
    times = torch.tensor(SPAN[::-1], dtype=torch.float64)
    found = torch.stack([Probing(2, key=key).times(times) for key in range(500)])
    assert bool((found[:, 0] > found[:, 1]).all())  # in the order of the solve
    share = (found - SPAN[0]) / (SPAN[1] - SPAN[0])
    assert 0.0 < float(share.min()) < float(share.max()) < 1.0
    assert abs(float(share.mean()) - 0.5) < 3.0 * (1 / 12 / 1000) ** 0.5
    assert torch.equal(Probing(2, key=3).times(times), found[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_squares_of_half_precision_are_summed_in_float32(dtype):
    x = torch.full((2, 4096), 0.1, dtype=dtype)
    probed = Probed(FIELD, (), (), (0.0, 1.0), (x, x), 1.0, torch.Generator())
    found = integrated_square(x, probed)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(x[0, 0]) ** 2, rel=1e-5)


def error_by_hand(f, t, y, h, tol, k1=None):
    """Embedded error of one step of dopri5, by scipy's weights, in units of the tolerance."""
    ks = [f(t, y) if k1 is None else k1]
    for c, row in zip(RK45.C[1:].tolist(), RK45.A[1:].tolist(), strict=True):
        ks.append(f(t + c * h, y + h * sum(a * k for a, k in zip(row, ks, strict=False))))
    y_next = y + h * sum(b * k for b, k in zip(RK45.B.tolist(), ks, strict=True))
    ks.append(f(t + h, y_next))
    error = h * sum(e * k for e, k in zip(RK45.E.tolist(), ks, strict=True))
    return (error / (tol + tol * torch.maximum(y.abs(), y_next.abs()))).square().mean().sqrt()


def of_block(which, solver, field=None, y0=None, seed=0):
    """Value of a penalty on a block over [0, 1], and the block."""
    block = ODEBlock(field or CosineField(), solver)
    y0 = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)[:, None] if y0 is None else y0
    with penalize(block, [which], step=0, seed=seed):
        block(y0)
        value = penalty(block)
    return value, block, y0


def test_local_error_of_steps_is_that_of_the_method():
    tol = 1e-2
    value, block, y0 = of_block(
        LocalError(1.0), AdaptiveSolver("dopri5", tol, tol, first_step=1.0)
    )
    assert block.stats.accepted == 1
    expected = error_by_hand(
        block.vector_field, torch.zeros((), dtype=torch.float64), y0, 1.0, tol
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-10)
    a = block.vector_field.a  # the state is no constant, the length of the step is one
    torch.testing.assert_close(
        torch.autograd.grad(value, a), torch.autograd.grad(expected, a), rtol=1e-8, atol=0.0
    )
    tight = of_block(LocalError(1.0), AdaptiveSolver("dopri5", 1e-7, 1e-7))[0]
    assert 0.0 < float(tight) < 1.0  # below the tolerance, times a step


@pytest.mark.parametrize("hold_slope", [False, True])
def test_local_error_of_one_step_holds_state_length_and_if_asked_slope_constant(hold_slope):
    tol = 1e-5
    which = LocalError(1.0, "one_step", tol, tol, hold_slope)
    probed = at(0.9)
    value = which.value(probed)
    (grad,) = torch.autograd.grad(value, FIELD.a)
    t, y = probed.t[0], probed.y[0]
    k1 = FIELD(t, y).detach() if hold_slope else FIELD(t, y)
    steps = np.geomspace(1e-3, 1.0, 400)  # the length is found: the value is of order one there
    per_length = [float(h * error_by_hand(FIELD, t, y, h, tol, k1)) for h in steps]
    h = np.interp(float(value), per_length, steps)
    expected = h * error_by_hand(FIELD, t, y, h, tol, k1)
    (by_hand,) = torch.autograd.grad(expected, FIELD.a)
    if not hold_slope:  # only then is it the gradient of the value
        a, change = FIELD.a.detach().clone(), 1e-3
        moved = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                FIELD.a.copy_(a + sign * change)
                moved.append(float(h * error_by_hand(FIELD, t, y, h, tol, FIELD(t, y))))
                FIELD.a.copy_(a)
        assert (moved[0] - moved[1]) / (2.0 * change) == pytest.approx(float(by_hand), rel=1e-3)
    assert float(grad) == pytest.approx(float(by_hand), rel=5e-2)
    assert 0.01 < float(value) / h <= 1.0


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("beyond", [0.0, 0.2])
def test_a_step_from_the_end_or_beyond_it_goes_on_in_the_direction_of_the_solve(direction, beyond):
    def value(start, *ends):
        y, shares = torch.tensor([START]), ((start - ends[0]) / (ends[1] - ends[0]),)
        start, *ends = (torch.tensor(x, dtype=torch.float64) for x in (start, *ends))
        probed = Probed(
            FIELD, (start,), (y,), tuple(ends), (y, y), 1.4, torch.Generator(), shares=shares,
            direction=direction,
        )  # fmt: skip
        return float(LocalError(1.0, "one_step").value(probed).detach())

    end = direction * 1.4
    start = end + direction * beyond
    assert value(start, 0.0, end) == value(start, start, start + end) > 0.0


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_stiffness_of_a_linear_field_is_its_rate(method):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(7.0, dtype=torch.float64))

        def forward(self, t, y):
            return -self.rate * y

    value, block, _ = of_block(Stiffness(1.0), AdaptiveSolver(method, 1e-6, 1e-6), Linear())
    (grad,) = torch.autograd.grad(value, block.vector_field.rate)
    size = {"dopri5": 3.3066, "tsit5": 3.5068}[method]
    assert float(value.detach()) == pytest.approx(7.0 / size, rel=1e-9)
    assert float(grad) == pytest.approx(1.0 / size, rel=1e-6)


def test_a_trajectorys_distance_from_a_line_is_that_of_least_squares():
    probed = at(0.5, 1.2)
    t = np.array([SPAN[0], 0.5, 1.2, SPAN[1]])
    y = np.stack([SOLUTION(x) for x in t])
    basis = np.stack([np.ones(4), t], axis=1)
    residual = y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
    value = TrajectoryPolynomial(1.0).value(probed)
    assert float(value) == pytest.approx((residual**2).sum(1).mean(), rel=1e-9)
    single = {k: tuple(y.float() for y in getattr(probed, k)) for k in ("y", "y_ends")}
    with torch.autocast("cpu", torch.bfloat16):
        lowered = TrajectoryPolynomial(1.0).value(replace(probed, **single))
    assert float(lowered) == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize(
    "which",
    [
        KineticEnergy(1.0),
        JacobianNorm(1.0),
        Acceleration(1.0),
        Acceleration(1.0, order=3),
        TrajectoryPolynomial(1.0),
    ],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("b", [None, 0.2])
@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]])
def test_gradients_in_parameters_and_times_are_those_of_finite_differences(which, span, b):
    field, start = Twisted(), torch.tensor(START)[None]
    a = field.a.detach().clone()

    def value(a, t_eval):
        block = ODEBlock(field, FixedGridSolver("rk4", n_steps=20))
        steered = nullcontext() if b is None else steer(block, b=b, step=0)
        with penalize(block, [which], step=0, seed=3), steered:
            swapped = {"vector_field.a": a}
            functional_call(block, swapped, (start, t_eval))
            return penalty(block)

    t_eval = torch.tensor(span, dtype=torch.float64)
    assert gradcheck(value, (a.requires_grad_(), t_eval.requires_grad_()), rtol=1e-6)


def test_a_penalty_of_ones_own():
    class Size(Penalty):
        n_times = 2

        def value(self, probed):
            return torch.stack(probed.y).square().mean()

    seen = []
    Size.value = lambda self, probed, own=Size.value: seen.append(probed) or own(self, probed)
    value, block, y0 = of_block(Size(0.5), FixedGridSolver("rk4", n_steps=50))
    states = torch.stack([block.vector_field.exact(y0, 0.0, t) for t in seen[0].t])
    assert float(value) == pytest.approx(0.5 * float(states.square().mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KineticEnergy(-1.0), "weight of KineticEnergy to be >= 0, but got -1"),
        (lambda: KineticEnergy(float("nan")), "Expected finite values"),
        (lambda: KineticEnergy(Schedule(1.0, -1.0, 5)), "weight of KineticEnergy to be >= 0"),
        (lambda: Acceleration(1.0, order=4), "Expected `order` to be one of"),
        (lambda: LocalError(1.0, form="step"), "Did you mean 'steps'"),
        (lambda: LocalError(1.0, rtol=0.0), "rtol"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Spiral(nn.Module):
    """``y' = (0.5 + i) y + i t``, as a complex number or as two real ones."""

    def __init__(self, as_complex):
        super().__init__()
        self.as_complex = as_complex
        self.w = nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))

    def forward(self, t, y):
        z = y if self.as_complex else torch.view_as_complex(y)[:, None]
        slope = torch.view_as_complex(self.w) * z + 1j * t
        return slope if self.as_complex else torch.view_as_real(slope)[:, 0]


@pytest.mark.parametrize(
    ("which", "dims"),
    [(KineticEnergy(1.0), 2), (Acceleration(1.0), 2), (TrajectoryPolynomial(1.0), 1)],
)
def test_a_complex_dimension_is_two_real_ones(which, dims):
    """A mean over dimensions is over half as many."""
    found, y0 = [], torch.tensor([[1.0, -0.5], [0.2, 0.8]], dtype=torch.float64)
    for as_complex in (False, True):
        block = ODEBlock(Spiral(as_complex), AdaptiveSolver(rtol=1e-8, atol=1e-8))
        with penalize(block, [which], step=0, seed=1):
            block(torch.view_as_complex(y0)[:, None] if as_complex else y0)
            value = penalty(block)
        value.backward()
        found.append((value.detach(), block.vector_field.w.grad))
    real, of_complex = found
    for a, b in zip(real, of_complex, strict=True):
        torch.testing.assert_close(b, dims * a, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("which", [LocalError(1.0), Stiffness(1.0)], ids=lambda p: p.name)
def test_a_learned_end_has_the_gradient_of_finite_differences(which):
    def value(t1):  # one step, whose length in the solver's times is a constant
        solver = AdaptiveSolver("dopri5", rtol=1.0, atol=1.0, first_step=1.0)
        block = ODEBlock(Twisted(), solver, learn_t1=True).double()
        with penalize(block, [which], step=0, seed=3):
            functional_call(block, {"horizon.learned_t1": t1}, torch.tensor(START)[None])
            assert block.stats.accepted == 1
            return penalty(block)

    assert gradcheck(value, torch.tensor(1.3, dtype=torch.float64, requires_grad=True))


def test_the_mean_rate_of_samples():
    assert mean_rate(SimpleNamespace(rate=torch.tensor([-0.5, 1.5]))) == 1.0
