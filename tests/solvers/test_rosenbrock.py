"""The implicit solver: its orders, its stability, its gradients, and what it refuses."""

import copy
import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn import MLPField
from steer_lightning.solvers import (
    AdaptiveSolver,
    NFEBudgetExceededError,
    NonFiniteStateError,
    RosenbrockSolver,
    SolverError,
)
from steer_lightning.solvers.jacobian import Layout, linearize
from steer_lightning.solvers.linear_systems import LinearSystems
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from tests.helpers.models import RecordingField, seeded
from tests.helpers.problems import (
    CosineField,
    LinearField,
    OscillatorField,
    initial_state,
    jacobians,
    times,
)

every_method = pytest.mark.parametrize("method", ROSENBROCK)
ORDERS = {"rodas5p": 5, "rodas4": 4, "rosenbrock23": 2}
DENSE_ORDERS = {"rodas5p": 4, "rodas4": 3, "rosenbrock23": 2}


class Swing(nn.Module):
    """A nonlinear field of two components, with or without time."""

    def __init__(self, timed=True):
        super().__init__()
        self.autonomous = not timed
        self.w = nn.Parameter(times(1.0, 0.7, 3.0))

    def forward(self, t, y):
        x, v = y.unbind(-1)
        w, damping, rate = self.w
        push = 0.0 if self.autonomous else torch.sin(rate * t)
        return torch.stack([w * v + push * x, -x * v - damping * torch.sin(x)], dim=-1)


class Pull(nn.Module):
    """``y' = -r (y - cos t) - sin t``, each component with a rate of its own; ends at cos t."""

    def __init__(self, *rates):
        super().__init__()
        self.rates = nn.Parameter(times(*rates))

    def forward(self, t, y):
        return -self.rates[:, None] * (y - torch.cos(t)) - torch.sin(t)

    def exact(self, y0, t):
        return torch.cos(t) + (y0 - 1.0) * torch.exp(-self.rates[:, None] * t)


def robertson(t, y):
    a, b, c = y.unbind(-1)
    first, last = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([first, -first - last, last], dim=-1)


def van_der_pol(t, y):
    x, v = y.unbind(-1)
    return torch.stack([v, 1000.0 * (1.0 - x * x) * v - x], dim=-1)


def two_scales(t, y):
    """The stiff equation of the STEER paper, Section 4.4."""
    return -1000.0 * y + 3000.0 - 2000.0 * torch.exp(-t)


def prothero_robinson(t, y):
    return -1e6 * (y - torch.cos(t))


def solve(field, y0, *ends, method="rodas5p", tolerance=1e-6, **settings):
    dense = settings.pop("dense", False)
    settings = {"rtol": tolerance, "atol": tolerance, "max_nfe": None, **settings}
    return RosenbrockSolver(method, **settings).solve(field, y0, times(*ends), dense=dense)


def one_step(method, field, y0, t, h):
    settings = {"tolerance": 1e9, "first_step": 10.0, "dense": True}
    solution = solve(field, y0, t, t + h, method=method, **settings)
    assert len(solution.steps) == 1
    return solution


# Order, stability, references


@every_method
@pytest.mark.parametrize("timed", [False, True])
def test_order_of_the_solution_and_of_the_error_estimate(method, timed):
    field, y0, errors, estimates = Swing(timed), initial_state(), [], []
    for h in (0.04, 0.02):
        solution = one_step(method, field, y0, 0.8, h)
        exact = AdaptiveSolver("tsit5", 1e-13, 1e-13).solve(field, y0, times(0.8, 0.8 + h)).ys
        errors.append((solution.ys[-1] - exact[-1]).detach().abs().max())
        estimates.append(solution.steps.error_estimates()[0].detach())
    order = float((errors[0] / errors[1]).log2())
    assert order == pytest.approx(ORDERS[method] + 1, abs=0.3)
    order = float((estimates[0] / estimates[1]).log2())
    assert order == pytest.approx(ROSENBROCK[method].error_order, abs=0.4)


@every_method
def test_order_of_the_interpolant(method):
    field, y0, errors = Swing(), initial_state(), []
    for h in (0.1, 0.05):
        t = times(0.3 + 0.4 * h)
        found = one_step(method, field, y0, 0.3, h).at(t)[0]
        exact = AdaptiveSolver("tsit5", 1e-13, 1e-13).solve(field, y0, times(0.3, float(t))).ys
        errors.append((found - exact[-1]).detach().abs().max())
    order = float((errors[0] / errors[1]).log2())
    assert order == pytest.approx(DENSE_ORDERS[method] + 1, abs=0.4)


@every_method
def test_a_fast_pull_is_forgotten_in_one_step(method):
    """L-stable: not only bounded."""
    y = one_step(method, lambda t, y: -1e10 * y, initial_state(), 0.0, 1.0).ys[-1]
    assert float(y.abs().max()) < 1e-6


@every_method
@pytest.mark.parametrize("start", [1.0, 1.5])
def test_no_step_is_bounded_by_stability(method, start):
    tolerance = 1e-3 if method == "rosenbrock23" else 1e-6
    y0 = times(start)[:, None]
    solution = solve(prothero_robinson, y0, 0.0, 10.0, method=method, tolerance=tolerance)
    assert abs(float(solution.ys[-1]) - math.cos(10.0)) < 10.0 * tolerance
    assert solution.stats.accepted < 300  # an explicit method: three million


PROBLEMS = {
    "robertson": (robertson, (1.0, 0.0, 0.0), 1e4, (1.0, 1e-5, 1.0)),
    "van der pol": (van_der_pol, (2.0, 0.0), 1000.0, (1.0, 1e-3)),
    "two scales": (two_scales, (0.0,), 15.0, (1.0,)),
    "prothero and robinson": (prothero_robinson, (1.5,), 3.0, (1.0,)),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    """A field, its start and end, the sizes of its parts, and its solution by scipy."""
    field, y0, t1, sizes = PROBLEMS[request.param]
    ends = [
        solve_ivp(
            lambda t, y: field(times(t)[0], torch.tensor(y)).numpy(),
            (0.0, t1), y0, method=scipys, rtol=rtol, atol=1e-13,
        ).y[:, -1]
        for scipys, rtol in (("Radau", 1e-10), ("BDF", 1e-8))
    ]  # fmt: skip
    radau, bdf = (torch.from_numpy(end) for end in ends)
    torch.testing.assert_close(bdf, radau, rtol=1e-5, atol=1e-9)
    return field, times(*y0)[None], t1, times(*sizes), radau


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        ("rodas5p", 1e-4),
        ("rodas5p", 1e-6),
        ("rodas5p", 1e-8),
        ("rodas4", 1e-4),
        ("rodas4", 1e-6),
        ("rosenbrock23", 1e-4),
    ],
)
def test_stiff_problems_are_solved_to_tolerance_as_by_scipy(problem, method, tolerance):
    field, y0, t1, sizes, expected = problem
    settings = {"method": method, "tolerance": tolerance, "atol": 1e-4 * tolerance}
    found = solve(field, y0, 0.0, t1, **settings).ys[-1, 0]
    assert float(((found - expected) / sizes).abs().max()) < 30.0 * tolerance


@every_method
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)])
@pytest.mark.parametrize("field_class", [CosineField, LinearField])
def test_closed_forms_in_both_directions(method, ends, field_class):
    tolerance = 1e-6 if method == "rosenbrock23" else 1e-8
    field, y0 = field_class(), initial_state()
    solution = solve(field, y0, *ends, method=method, tolerance=tolerance, dense=True)
    for t in (ends[1], 0.3 * ends[0] + 0.7 * ends[1]):
        expected = field.exact(y0, ends[0], t)
        atol = 1e-3 if method == "rosenbrock23" else 3e-7
        torch.testing.assert_close(solution.at(times(t))[0], expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_method
def test_samples_of_very_different_stiffness(method, dtype):
    field, y0 = Pull(1.0, 1e2, 1e4, 1e6).to(dtype), times(2.0, 2.0, 2.0, 2.0)[:, None].to(dtype)
    solution = solve(field, y0, 0.0, 1.0, method=method, tolerance=1e-4)
    assert solution.ys.dtype == dtype
    expected = field.exact(y0, torch.ones((), dtype=dtype))
    torch.testing.assert_close(solution.ys[-1], expected, rtol=0.0, atol=1e-3)
    assert solution.stats.accepted < 400


# Jacobians and linear systems


class Mixed(nn.Module):
    """A tuple of an image and an integral, of which the field's Jacobian is not symmetric."""

    def forward(self, t, state):
        y, total = state
        rows = y.flatten(1)
        turned = torch.stack([rows[:, 1] * total, t * rows[:, 0] ** 2], dim=1)
        return turned.view_as(y), rows.prod(1) + torch.sin(t)


def test_a_tuple_is_linearized_as_one_vector():
    state = (initial_state().view(3, 1, 2), times(0.3, 0.5, 0.7))
    layout = Layout(state)
    assert (layout.n_samples, layout.dimension) == (3, 3)
    assert all(map(torch.equal, layout.unpack(layout.pack(state)), state))
    found = linearize(Mixed(), 0.4, state, layout)

    class Flat(nn.Module):
        def forward(self, t, y):
            return layout.pack(Mixed()(t, layout.unpack(y)))

    t = times(0.4)[0]
    torch.testing.assert_close(found.slope, Flat()(t, layout.pack(state)))
    one = Layout((state[0][:1], state[1][:1]))
    flat = layout.pack(state)
    for i in range(3):
        expected = torch.autograd.functional.jacobian(
            lambda row: one.pack(Mixed()(t, one.unpack(row))), flat[i : i + 1]
        )
        torch.testing.assert_close(found.jacobian[i], expected[0, :, 0])
    expected = torch.stack([0.0 * t.expand(3), state[0][:, 0, 0] ** 2, torch.cos(t).expand(3)], 1)
    torch.testing.assert_close(found.drift, expected)


@pytest.mark.parametrize("time_dependent", [False, True])
def test_the_jacobian_of_a_network_is_that_of_reverse_mode(time_dependent):
    field = seeded(MLPField, 2, (5,), time_dependent=time_dependent).double()
    recording = RecordingField(field)
    found = linearize(recording, 0.4, initial_state(), Layout(initial_state()))
    assert len(recording.times) == 1
    t = times(0.4)[0]
    torch.testing.assert_close(found.jacobian, jacobians(field, t, initial_state()))
    torch.testing.assert_close(found.slope, field(t, initial_state()))
    # Under hooks, by forward mode.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        forward = linearize(field, 0.4, initial_state(), Layout(initial_state()))
    torch.testing.assert_close(forward.slope, found.slope)
    torch.testing.assert_close(forward.jacobian, found.jacobian)
    assert (forward.drift is None) == field.autonomous
    if time_dependent:
        torch.testing.assert_close(forward.drift, found.drift)
    else:
        assert float(found.drift.abs().max()) == 0.0
    alone = linearize(field, 0.4, initial_state(), Layout(initial_state()))
    assert (alone.drift is None) == field.autonomous
    torch.testing.assert_close(alone.jacobian, found.jacobian)


class OwnJacobian(CosineField):
    """Brings its Jacobian along, and counts."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def jacobian(self, t, y):
        self.asked += 1
        diagonal = (self.a * torch.cos(t)).reshape(-1, 1).expand(len(y), y.shape[1])
        return torch.diag_embed(diagonal)


@pytest.mark.parametrize("warp", [False, True])
def test_a_field_may_bring_its_own_jacobian(warp):
    own, found = OwnJacobian(), []
    for field in (own, CosineField()):
        if warp:
            field = WarpedField(field, TimeWarp(0.1, 0.2, times(0.5, 1.0, 1.5)))
        found.append(solve(field, initial_state(), 0.1, 1.1))
    assert found[0].stats == found[1].stats
    assert own.asked == found[0].stats.jacobians > 0
    torch.testing.assert_close(found[0].ys, found[1].ys, rtol=1e-12, atol=0.0)


def test_a_jacobian_of_the_wrong_shape_is_refused():
    field = CosineField()
    field.jacobian = lambda t, y: torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"`jacobian` to have shape \(3, 2, 2\), .* got \(3, 2\)"):
        solve(field, initial_state(), 0.0, 1.0)


def test_a_field_that_ignores_time_may_bring_its_jacobian_too():
    field, y0 = LinearField(), initial_state()
    field.jacobian = lambda t, y: field.a.expand(len(y), 2, 2)
    ys = solve(field, y0, 0.0, 1.0, tolerance=1e-9).ys
    torch.testing.assert_close(ys[-1], field.exact(y0, 0.0, 1.0), rtol=1e-7, atol=0.0)


def test_gradients_of_linear_systems_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    matrix, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 3), (2, 3))
    )

    def solution(matrix, right):
        systems = LinearSystems(matrix)
        return systems.solve(systems.solve(right).square())

    expected = torch.linalg.solve(matrix, torch.linalg.solve(matrix, right).square())
    torch.testing.assert_close(solution(matrix, right), expected)
    assert torch.autograd.gradcheck(solution, (matrix, right))
    assert torch.autograd.gradgradcheck(solution, (matrix, right))


# Gradients


@every_method
@pytest.mark.parametrize("ends", [(0.2, 1.1), (1.1, 0.2), (0.2, 0.5, 0.9, 1.1)])
def test_gradients_in_state_times_and_parameters_are_those_of_finite_differences(method, ends):
    # Finite differences see the steps change with the end; so exact a solution does not.
    tolerance = {"rodas5p": 1e-9, "rodas4": 1e-7, "rosenbrock23": 1e-4}[method]
    field, solver = Swing(), RosenbrockSolver(method, tolerance, tolerance, None)
    del field.w

    def outputs(y0, t_eval, w):
        field.w = w
        return solver.solve(field, y0, t_eval).ys

    inputs = (initial_state(1), times(*ends), times(1.0, 0.7, 3.0))
    inputs = [x.requires_grad_() for x in inputs]
    close = {"rodas5p": 1e-6, "rodas4": 1e-4, "rosenbrock23": 2e-2}[method]
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


# What it shares with the explicit solver


@pytest.mark.parametrize("first_step", [0.01, "auto", "previous"])
def test_the_first_step_is_the_one_asked_for(first_step):
    solver = RosenbrockSolver(first_step=first_step)
    for suggested in (None, 0.02):
        solution = solver.solve(
            CosineField(), initial_state(), times(0.0, 1.0), dense=True, first_step=suggested
        )
        known = suggested or (first_step if isinstance(first_step, float) else None)
        if known is not None:
            assert solution.steps.lengths[0] == pytest.approx(known)
    assert solver.remembers == (first_step == "previous")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad):
    y0 = initial_state()
    y0[1, 1] = bad
    with pytest.raises(NonFiniteStateError, match="NaN or infinite at t = 0 in the forward solve"):
        solve(CosineField(), y0, 0.0, 1.0)


def test_a_solution_that_ends_is_an_error_of_the_step():
    y0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(SolverError, match=r"t = (1|0\.99)"):
        solve(lambda t, y: y * y, y0, 0.0, 2.0, max_nfe=2000)


def test_the_budget_names_the_solver_for_stiff_fields():
    y0 = times(1.5)[:, None]
    with pytest.raises(NFEBudgetExceededError, match="use RosenbrockSolver where it is stiff"):
        AdaptiveSolver(max_nfe=1000).solve(prothero_robinson, y0, times(0.0, 10.0))
    with pytest.raises(NFEBudgetExceededError, match=r"max_nfe = 100 .*dt = .*rtol = 1e-06"):
        solve(prothero_robinson, y0, 0.0, 10.0, max_nfe=100)


class Large(nn.Module):
    def forward(self, t, y):
        raise AssertionError("the vector field was evaluated")


def test_a_state_too_large_is_refused_with_its_size():
    message = (
        r"at most max_dimension = 256 .* got 784: for 32 samples each step would keep 150 MiB of "
        r".* Use an explicit solver, AdaptiveSolver or FixedGridSolver, or raise max_dimension"
    )
    y0 = torch.zeros(32, 1, 28, 28)
    with pytest.raises(ValueError, match=message):
        RosenbrockSolver().solve(Large(), y0, times(0.0, 1.0))
    with pytest.raises(ValueError, match=message):
        AdaptiveSolver(stiff="switch").solve(Large(), y0, times(0.0, 1.0))
    y0 = initial_state().requires_grad_()
    with pytest.raises(ValueError, match=r"max_dimension = 1 .* got 2: .* keep 192 bytes of"):
        solve(CosineField(), y0, 0.0, 1.0, max_dimension=1)


def test_a_complex_state_is_refused():
    y0 = torch.ones(2, 1, dtype=torch.complex128)
    with pytest.raises(TypeError, match=r"Expected a real state .* but got torch.complex128"):
        solve(Large(), y0, 0.0, 1.0)


def test_its_stages_are_no_slopes():
    steps = solve(CosineField(), initial_state(), 0.0, 1.0, dense=True).steps
    with pytest.raises(ValueError, match="Expected an explicit method"):
        steps.stiffness_estimates()


# The choice between explicit and implicit


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_stiffness_is_said_once(method):
    solver = AdaptiveSolver(method, stiff="warn")
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    message = rf"not stiff for {method}, but near t = .* about 1e\+03.*Use RosenbrockSolver, or Ad"
    with pytest.warns(UserWarning, match=message):
        found = solver.solve(two_scales, y0, times(0.0, 1.0)).ys
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.solve(two_scales, y0, times(0.0, 1.0))
        plain = AdaptiveSolver(method).solve(two_scales, y0, times(0.0, 1.0)).ys
    assert torch.equal(found, plain)


@pytest.mark.parametrize("stiff", ["warn", "switch"])
@pytest.mark.parametrize("ends", [(0.0, 20.0), (20.0, 0.0)])
def test_a_field_that_is_not_stiff_stays_with_the_explicit_method(stiff, ends):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = AdaptiveSolver(stiff=stiff).solve(CosineField(), initial_state(), times(*ends))
    plain = AdaptiveSolver().solve(CosineField(), initial_state(), times(*ends))
    assert torch.equal(solution.ys, plain.ys)
    assert solution.stats == plain.stats


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_stiff_solve_is_handed_over_to_the_implicit_method(checkpoint):
    t = times(0.0, 0.01, 0.5, 7.0, 15.0)
    solver = AdaptiveSolver("dopri5", 1e-7, 1e-7, checkpoint=checkpoint, stiff="switch")
    y0 = torch.zeros(1, 1, dtype=torch.float64).requires_grad_()
    solution = solver.solve(two_scales, y0, t, dense=True)
    exact = 3.0 - (2000.0 * torch.exp(-t) + 997.0 * torch.exp(-1000.0 * t)) / 999.0
    torch.testing.assert_close(solution.ys[:, 0, 0], exact, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(solution.at(t)[:, 0, 0], exact, rtol=0.0, atol=1e-5)
    assert 0 < solution.stats.jacobians < 120
    assert solution.stats.accepted < 300
    assert len(solution.steps) == solution.stats.accepted
    assert len(solution.steps.error_estimates()) == solution.stats.accepted
    # Read at the very end, the gradient in the initial state is gone; early it is not.
    (gradient,) = torch.autograd.grad(solution.ys[1].sum(), y0)
    assert float(gradient) == pytest.approx(math.exp(-10.0), rel=1e-3)


def test_gradients_through_a_change_of_methods_are_those_of_either():
    found = []
    for solver in (
        AdaptiveSolver("tsit5", 1e-6, 1e-6, None, stiff="switch"),
        RosenbrockSolver("rodas5p", 1e-8, 1e-8),
    ):
        field, y0 = Pull(1.0, 500.0), times(2.0, 2.0)[:, None].requires_grad_()
        t = times(0.0, 1.0, 3.0).requires_grad_()
        solution = solver.solve(field, y0, t)
        assert solution.stats.jacobians > 0
        y = solution.ys[1:].sum()
        found.append(torch.autograd.grad(y, (y0, t, field.rates)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_solver_solves_as_it_does():
    solver = copy.deepcopy(RosenbrockSolver("rodas4", 1e-6, 1e-6))
    found = [
        s.solve(CosineField(), initial_state(), times(0.0, 1.0)).ys
        for s in (solver, RosenbrockSolver("rodas4", 1e-6, 1e-6))
    ]
    assert torch.equal(*found)
