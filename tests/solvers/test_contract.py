"""What every solver computes, accepts, refuses and reports."""

import copy
import math

import pytest
import torch
from torch import nn

from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    NFEBudgetExceededError,
    RosenbrockSolver,
    SolveStats,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.rosenbrock_methods import ROSENBROCK
from steer_lightning.solvers.tableaus import ADAPTIVE, FIXED
from steer_lightning.utils.problem import parts
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, LinearField, OscillatorField, initial_state, times
from tests.helpers.stiff import Swing

TIGHT = {"rtol": 1e-8, "atol": 1e-8}
SOLVERS = [
    AdaptiveSolver(**TIGHT),
    AdaptiveSolver("tsit5", **TIGHT, checkpoint=True),
    AdaptiveSolver("bosh3", **TIGHT),
    RosenbrockSolver(**TIGHT),
    RosenbrockSolver("rodas4", **TIGHT, checkpoint=True),
    RosenbrockSolver("rosenbrock23", rtol=1e-5, atol=1e-6),
    TorchdiffeqSolver(**TIGHT),
    TorchdiffeqSolver(**TIGHT, gradient="adjoint"),
    TorchdiffeqSolver("rk4", options={"step_size": 0.01}),
    FixedGridSolver(n_steps=50),
    FixedGridSolver(n_steps=50, checkpoint=True),
]
MORE = [
    AdaptiveSolver("bosh3", **TIGHT, checkpoint=True),
    TorchdiffeqSolver(**TIGHT, gradient="adjoint", seminorm=True),
    TorchdiffeqSolver("scipy_solver", **TIGHT, gradient="adjoint"),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


@pytest.mark.parametrize("solver", [*SOLVERS, *MORE], ids=repr)
@pytest.mark.parametrize("field_class", [CosineField, LinearField, OscillatorField])
@pytest.mark.parametrize("t_eval", [(0.2, 1.1), (1.4, 0.9, 0.2)])
def test_values_and_gradients_are_those_of_the_closed_form(solver, field_class, t_eval):
    """In state, times and parameters, at every time and in both directions."""
    field, results = field_class(), []
    for solved in (True, False):
        y0 = (initial_state(), -initial_state()) if field_class is OscillatorField else (
            initial_state(),
        )  # fmt: skip
        inputs, t = [part.requires_grad_() for part in y0], times(*t_eval).requires_grad_()
        state = y0 if len(y0) > 1 else y0[0]
        if solved:
            ys = parts(solver.solve(field, state, t).ys)
            rounds = solver.method == "scipy_solver"
            assert rounds or all(torch.equal(y[0], part) for y, part in zip(ys, y0, strict=True))
        else:
            exact = [parts(field.exact(state, t[0], s)) for s in t]
            ys = [torch.stack(column) for column in zip(*exact, strict=True)]
        weights = torch.linspace(0.3, 1.0, ys[0].numel(), dtype=torch.float64).view_as(ys[0])
        # torchdiffeq's fixed grids are read by straight lines, and scipy's times are numbers.
        if not getattr(solver, "options", None) and solver.method != "scipy_solver":
            inputs = [*inputs, t]
        loss = sum((y * weights).sum() for y in ys)
        results.append((*ys, *torch.autograd.grad(loss, [*inputs, *field.parameters()])))
    # Of order 2, with an estimate of the next order: exact would be expensive.
    close = 1e-2 if solver.method == "rosenbrock23" else 1e-5
    torch.testing.assert_close(*results, rtol=close, atol=close)


class Conditional(nn.Module):
    """A field with its condition held in every way; it counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("kept", torch.tensor(0.0))
        self.evaluations = 0
        self.put(torch.tensor(0.0))

    def put(self, condition):
        self.condition, self.conditions, self.kept = condition, [condition], condition
        self.named, self.number = {"a": condition}, float(condition)
        self.label, self.kind, self.upside_down = int(2 * condition), "ab"[condition > 0], None
        if condition < 0:
            self.upside_down = condition
        self.flip = nn.Identity() if condition > 0 else nn.Softplus()

    def forward(self, t, y):
        self.evaluations += 1
        wave = torch.sin(self.w * y) * self.condition * self.number
        slope = wave + self.kept * (self.conditions[0] * y + self.w * self.named["a"])
        share = (0.1 * self.label + {"a": 0.5, "b": 1.0}[self.kind]) * self.flip(slope)
        return share if self.upside_down is None else self.upside_down * share


@every_solver
def test_a_backward_pass_has_the_condition_of_its_forward_pass(solver):
    field, found = Conditional(), []
    for apart in (True, False):
        total, field.w.grad, field.evaluations, stats = 0.0, None, 0, SolveStats()
        for condition in (0.5, -1.0):
            field.put(torch.tensor(condition, dtype=torch.float64))
            y = solver.solve(field, initial_state(), times(0.0, 1.0), stats=stats).ys[-1]
            loss = y.square().sum()
            if apart:
                loss.backward()
            total = total + loss
        field.put(torch.tensor(7.0))
        del field.upside_down
        if not apart:
            total.backward()
        assert float(field.condition) == 7.0
        assert field.label == 14
        assert not hasattr(field, "upside_down")
        assert field.evaluations >= stats.nfe_forward + stats.nfe_backward
        found.append(field.w.grad)
    torch.testing.assert_close(found[1], found[0])


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_field_and_state_keep_their_dtype(solver, dtype):
    class Field(CosineField):
        def forward(self, t, y):
            assert (t.dtype, t.shape, y.dtype) == (dtype, (), dtype)
            return super().forward(t, y)

    y0 = initial_state(dtype=dtype)
    assert solver.solve(Field().to(dtype), y0, times(0.0, 1.0).to(dtype)).ys.dtype == dtype


@pytest.mark.parametrize("solver", [s for s in SOLVERS if isinstance(s, AdaptiveSolver)], ids=repr)
def test_a_field_may_differentiate_inside(solver):
    def descent(t, y):
        return -torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)[0]

    y0 = initial_state().requires_grad_()
    y = solver.solve(descent, y0, times(0.0, 1.0)).ys[-1]
    torch.testing.assert_close(y, y0 * math.exp(-1.0))


@every_solver
def test_counts_are_those_the_field_sees_and_add_up_over_solves(solver):
    field, y0 = RecordingField(CosineField()), initial_state()
    once = solver.solve(field, y0, times(0.0, 1.0)).stats
    assert once.nfe_forward == len(field.times) > 0
    assert once.accepted > 0
    stats = SolveStats()
    for _ in range(2):
        assert solver.solve(field, y0, times(0.0, 1.0), stats=stats).stats is stats
    assert stats.nfe_forward == 2 * once.nfe_forward
    assert stats.accepted == 2 * once.accepted
    stats.reset()
    assert stats == SolveStats()


@pytest.mark.parametrize("solver", [AdaptiveSolver(**TIGHT), FixedGridSolver(n_steps=50)])
@pytest.mark.parametrize("span", [1e-12, 1.0])
def test_complex_states_and_tiny_spans_are_solved(solver, span):
    y0 = torch.ones(1, 2, dtype=torch.complex128)
    ys = solver.solve(lambda t, y: 1j * y, y0, times(0.0, span)).ys
    torch.testing.assert_close(ys[-1], torch.exp(1j * span * y0), rtol=1e-6, atol=1e-6)


METHODS = {AdaptiveSolver: ADAPTIVE, FixedGridSolver: FIXED, RosenbrockSolver: ROSENBROCK}


@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize(
    ("solver_class", "method"), [(solver, name) for solver in METHODS for name in METHODS[solver]]
)
def test_checkpointing_changes_nothing_and_counts_what_it_evaluates_again(
    solver_class, method, state
):
    results, implicit = [], solver_class is RosenbrockSolver
    for checkpoint in (False, True):
        field = RecordingField(Swing() if state == "tensor" else OscillatorField())
        y0 = initial_state().requires_grad_()
        solution = solver_class(method, checkpoint=checkpoint).solve(
            field, y0 if state == "tensor" else (y0, 2.0 * y0), times(0.0, 2.0), first_step=1.0
        )
        y = solution.ys if state == "tensor" else torch.cat(solution.ys, dim=1)
        forward, stats = len(field.times), solution.stats
        assert (stats.rejected > 0) == (solver_class is not FixedGridSolver)
        gradients = torch.autograd.grad(y[-1].square().sum(), (y0, *field.parameters()))
        steps = stats.accepted if checkpoint else 0
        n_stages = len(METHODS[solver_class][method].c) - (solver_class is AdaptiveSolver)
        assert len(field.times) - forward == stats.nfe_backward == n_stages * steps
        again = (stats.jacobians_backward, stats.factorizations_backward)
        assert again == ((steps, steps) if implicit else (0, 0))
        results.append((y.detach(), *gradients))
    close = 1e-9 if implicit else 0.0  # bit for bit
    torch.testing.assert_close(*results, rtol=close, atol=1e-3 * close)


@pytest.mark.parametrize(
    "solver",
    [
        AdaptiveSolver(max_nfe=20),
        RosenbrockSolver("rodas4", max_nfe=20),
        TorchdiffeqSolver(max_nfe=20),
        TorchdiffeqSolver("euler", max_nfe=20, options={"step_size": 0.01}),
    ],
    ids=repr,
)
def test_the_budget_stops_a_solve_is_inclusive_and_each_solve_has_its_own(solver):
    stats, field = SolveStats(), RecordingField(CosineField())
    message = r"forward solve needs more than max_nfe = 20 .* t = .*raise"
    with pytest.raises(NFEBudgetExceededError, match=message):
        solver.solve(field, initial_state(), times(0.0, 50.0), stats=stats)
    assert 14 <= len(field.times) == stats.nfe_forward <= 20
    stats.reset()
    span = times(0.0, 0.05)
    used = solver.solve(field, initial_state(), span).stats.nfe_forward
    exact = copy.copy(solver)
    exact.max_nfe = used
    for _ in range(3):
        exact.solve(field, initial_state(), span, stats=stats)
    assert stats.nfe_forward == 3 * used


@pytest.mark.parametrize("solver_class", [AdaptiveSolver, RosenbrockSolver])
@pytest.mark.parametrize("first_step", [0.01, "auto", "previous"])
def test_the_first_step_is_the_one_asked_for_and_work_is_counted(solver_class, first_step):
    solver = solver_class(first_step=first_step)
    assert solver.remembers == (first_step == "previous")
    for suggested in (None, 0.02):
        field, span = RecordingField(CosineField()), times(0.0, 20.0)
        solution = solver.solve(field, initial_state(), span, dense=True, first_step=suggested)
        known = suggested or (first_step if isinstance(first_step, float) else None)
        if known is not None:
            assert solution.steps.lengths[0] == pytest.approx(known)
        stats = solution.stats
        n_tried = stats.accepted + stats.rejected
        # The slope at the start and six further stages a step; or one stage beside each Jacobian.
        expected = 1 + 6 * n_tried
        if solver_class is RosenbrockSolver:
            expected = stats.jacobians + 7 * n_tried
            assert (stats.jacobians, stats.factorizations) == (stats.accepted, n_tried)
        expected += known is None  # to find the first step
        assert len(field.times) == stats.nfe_forward == expected
        assert stats.nfe_backward == stats.jacobians_backward == 0
        assert 0.0 < stats.smallest_dt < 20.0


@pytest.mark.parametrize("solver_class", [AdaptiveSolver, RosenbrockSolver])
def test_rejected_steps_leave_nothing_on_the_tape(solver_class):
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

    y0, solver = initial_state().requires_grad_(), solver_class(first_step=2.0, **TIGHT)
    solution = solver.solve(lambda t, y: -Squared.apply(y), y0, times(0.0, 2.0))
    stats = solution.stats
    assert stats.rejected >= 1
    kept.clear()  # of Jacobians
    solution.ys[-1].sum().backward()
    if solver_class is RosenbrockSolver:
        assert stats.jacobians == stats.accepted
        assert len(kept) == 8 * stats.accepted
    else:  # the last slope of all, at the end, has no part in the state there
        assert len(kept) == 6 * stats.accepted
