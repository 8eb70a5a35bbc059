"""What a solve reports, and where it stops, against fields that count by themselves."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning.solvers import (
    NFEBudgetExceededError,
    NonFiniteStateError,
    SolveStats,
    StepSizeUnderflowError,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.torchdiffeq import METHODS
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, initial_state, times


class Witness(RecordingField):
    """Counts steps the way torchdiffeq tells anybody who asks."""

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__(vector_field)
        self.steps = {"accepted": 0, "rejected": 0, "accepted_backward": 0, "rejected_backward": 0}

    def callback_accept_step(self, *_):
        self.steps["accepted"] += 1

    def callback_reject_step(self, *_):
        self.steps["rejected"] += 1

    def callback_accept_step_adjoint(self, *_):
        self.steps["accepted_backward"] += 1

    def callback_reject_step_adjoint(self, *_):
        self.steps["rejected_backward"] += 1


@pytest.mark.parametrize("method", METHODS)
def test_forward_evaluations_are_those_the_field_sees(method):
    gradient = "adjoint" if method == "scipy_solver" else "autograd"
    field = RecordingField(CosineField())
    solution = TorchdiffeqSolver(method, gradient=gradient).solve(
        field, initial_state(), times(0.0, 0.3, 2.0)
    )
    assert solution.stats.nfe_forward == len(field.times) > 0
    assert solution.stats.nfe_backward == 0


@pytest.mark.parametrize("span", [(0.0, 6.0), (6.0, 0.0)])
@pytest.mark.parametrize("seminorm", [False, True])
def test_evaluations_and_steps_of_both_passes_are_exact(span, seminorm):
    options = {"first_step": 4.0}  # too long a step, to have it rejected
    y0 = initial_state().requires_grad_()
    witness = Witness(CosineField())
    ys = odeint_adjoint(
        witness, y0, times(*span), rtol=1e-6, atol=1e-6, method="dopri5", options=options,
        adjoint_options={**options, "norm": "seminorm"} if seminorm else None,
    )  # fmt: skip
    forward = len(witness.times)
    ys[-1].sum().backward()

    solver = TorchdiffeqSolver(
        rtol=1e-6, atol=1e-6, gradient="adjoint", seminorm=seminorm, options=options
    )
    field = RecordingField(CosineField())
    solution = solver.solve(field, y0, times(*span))
    assert solution.stats.nfe_backward == 0
    solution.ys[-1].sum().backward()
    assert solution.stats == SolveStats(
        nfe_forward=forward, nfe_backward=len(witness.times) - forward, **witness.steps
    )
    assert len(field.times) == len(witness.times)
    assert min(witness.steps.values()) > 0


def test_a_case_counted_by_hand():
    # Nothing is an error at these tolerances: the step grows tenfold, and 0.01 + 0.1 + 1 reaches
    # the end; dopri5 evaluates 6 times a step and once at the start.
    solver = TorchdiffeqSolver("dopri5", 1e3, 1e3, options={"first_step": 0.01})
    solution = solver.solve(lambda t, y: torch.ones_like(y), torch.zeros(1), times(0.0, 1.0))
    assert solution.stats == SolveStats(nfe_forward=1 + 3 * 6, accepted=3)


def test_fixed_steps_counted_by_hand():
    solver = TorchdiffeqSolver("midpoint", gradient="adjoint", options={"step_size": 0.25})
    y0 = initial_state().requires_grad_()
    solution = solver.solve(CosineField(), y0, times(0.0, 1.0))
    assert solution.stats == SolveStats(nfe_forward=8, accepted=4)
    solution.ys[-1].sum().backward()
    assert solution.stats == SolveStats(
        nfe_forward=8, accepted=4, nfe_backward=8, accepted_backward=4
    )


def test_backpropagation_evaluates_nothing_again():
    field, y0 = RecordingField(CosineField()), initial_state().requires_grad_()
    solution = TorchdiffeqSolver(gradient="autograd").solve(field, y0, times(0.0, 2.0))
    forward = len(field.times)
    solution.ys[-1].sum().backward()
    assert len(field.times) == forward == solution.stats.nfe_forward
    assert solution.stats.nfe_backward == 0


def test_the_budget_stops_the_adjoint():
    def solve(max_nfe):
        solver = TorchdiffeqSolver(rtol=1e-2, atol=1e-2, gradient="adjoint", max_nfe=max_nfe)
        y0 = 1e-3 * initial_state()
        return solver.solve(CosineField(), y0.requires_grad_(), times(0.0, 3.0))

    forward = solve(None).stats.nfe_forward
    solution = solve(forward)
    with pytest.raises(NFEBudgetExceededError, match="backward solve needs more than max_nfe"):
        (1e3 * solution.ys[-1]).sum().backward()
    assert solution.stats.nfe_backward == forward


def test_each_backward_pass_has_a_budget_of_its_own():
    solver = TorchdiffeqSolver(gradient="adjoint")
    y0 = initial_state().requires_grad_()
    solution = solver.solve(CosineField(), y0, times(0.0, 1.0))
    solution.ys[-1].sum().backward(retain_graph=True)
    once = solution.stats.nfe_backward
    solver = TorchdiffeqSolver(gradient="adjoint", max_nfe=once)
    solution = solver.solve(CosineField(), y0, times(0.0, 1.0))
    for _ in range(3):
        solution.ys[-1].sum().backward(retain_graph=True)
    assert solution.stats.nfe_backward == 3 * once


@pytest.mark.parametrize("y0", [torch.ones(1), torch.ones(1, dtype=torch.float64)])
def test_a_solution_that_ends_underflows(y0):
    # y' = y^2 from y(0) = 1 is 1 / (1 - t): nothing beyond t = 1.
    with pytest.raises(StepSizeUnderflowError, match=r"forward solve: dt = .* t = 1\. .* float64"):
        TorchdiffeqSolver().solve(lambda t, y: y * y, y0, times(0.0, 2.0))


@pytest.mark.parametrize("options", [{}, {"min_step": 1e-3}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_that_breaks_down_is_named_so(value, options):
    def field(t, y):
        return -y if t < 0.5 else value * y

    with pytest.raises(NonFiniteStateError, match=r"NaN or infinite at t = 0\.\d+ in the forward"):
        TorchdiffeqSolver(options=options).solve(field, torch.ones(1), times(0.0, 2.0))


@pytest.mark.parametrize("options", [{}, {"min_step": 1e-3}], ids=str)
def test_a_batch_that_holds_nan_is_named_so(options):
    y0 = (torch.ones(2), torch.tensor([1.0, float("nan")]))
    with pytest.raises(NonFiniteStateError, match=r"at t = 0 in the forward solve.*batch and the"):
        TorchdiffeqSolver(options=options).solve(lambda t, y: y, y0, times(0.0, 2.0))


def test_the_witness_is_torchdiffeqs():
    witness = Witness(CosineField())
    odeint(witness, initial_state(), times(0.0, 6.0), options={"first_step": 4.0}, method="dopri5")
    assert witness.steps["accepted"] > 0
    assert witness.steps["rejected"] > 0
