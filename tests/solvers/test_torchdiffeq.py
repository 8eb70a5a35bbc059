"""The adapter against torchdiffeq itself, closed forms, and fields that count by themselves."""

import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS

from steer_lightning.solvers import (
    NFEBudgetExceededError,
    NonFiniteStateError,
    SolveStats,
    StepSizeUnderflowError,
    TorchdiffeqSolver,
)
from steer_lightning.solvers import torchdiffeq as adapter
from steer_lightning.solvers.torchdiffeq import FIXED_METHODS, METHODS
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, initial_state, times

both_gradients = pytest.mark.parametrize("gradient", ["autograd", "adjoint"])


def options_for(method):
    """Steps so short that the low-order interpolants between them are as exact as the steps."""
    if method == "scipy_solver":
        return {}
    return {"step_size": 0.002} if method in FIXED_METHODS else {"max_step": 0.02}


def test_every_method_of_torchdiffeq_is_there_by_name():
    assert sorted(METHODS) == sorted(SOLVERS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("span", [(0.0, 0.5), (0.5, 0.0)])
def test_every_method_solves_a_closed_form_and_counts_without_a_warning(method, span):
    gradient = "adjoint" if method == "scipy_solver" else "autograd"
    solver = TorchdiffeqSolver(method, 1e-7, 1e-7, gradient=gradient, options=options_for(method))
    field, y0 = RecordingField(CosineField()), initial_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ys, stats, *_ = solver.solve(field, y0, times(*span))
    tolerance = 2e-3 if method == "euler" else 2e-5
    exact = field.vector_field.exact(y0, *span)
    torch.testing.assert_close(ys[-1], exact, rtol=tolerance, atol=tolerance)
    assert stats.nfe_forward == len(field.times) > 0
    assert stats.nfe_backward == 0


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
@both_gradients
def test_the_result_is_torchdiffeqs_to_the_last_bit(method, gradient):
    field, y0, t_eval = CosineField(), initial_state(), times(0.0, 0.4, 2.0)
    call = odeint if gradient == "autograd" else odeint_adjoint
    expected = call(field, y0, t_eval, rtol=1e-3, atol=1e-4, method=method)
    solver = TorchdiffeqSolver(method, rtol=1e-3, atol=1e-4, gradient=gradient)
    assert torch.equal(solver.solve(field, y0, t_eval).ys, expected)


@both_gradients
def test_tolerances_method_and_options_reach_torchdiffeq_and_stay(monkeypatch, gradient):
    heard = {}

    def listen(func, y0, t, **settings):
        heard.update(settings)
        return torch.stack([y0] * len(t))

    monkeypatch.setattr(adapter, "odeint" if gradient == "autograd" else "odeint_adjoint", listen)
    options = {"first_step": 0.01, "max_num_steps": 7}
    field, expected = CosineField(), {**options}
    solver = TorchdiffeqSolver("bosh3", 1e-2, 1e-3, gradient, options=options)
    options["first_step"] = 0.5
    solver.solve(field, initial_state(), times(0.0, 1.0))
    params = heard.pop("adjoint_params", None)
    assert heard == {"rtol": 1e-2, "atol": 1e-3, "method": "bosh3", "options": expected}
    assert (params == (field.a,)) if gradient == "adjoint" else (params is None)
    assert solver.options == expected


def test_times_that_float32_cannot_hold_are_refused_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(adapter, "has_float64", lambda device: False)
    field, y0 = CosineField().float(), initial_state(dtype=torch.float32)
    TorchdiffeqSolver().solve(field, y0, times(0.0, 0.3))
    with pytest.raises(ValueError, match=r"float32 holds to 1e-5, .* Measure time from the start"):
        TorchdiffeqSolver().solve(field, y0, times(1e6, 1e6 + 0.3))


def test_an_adjoint_at_many_times_warns_and_one_at_few_does_not():
    adapter._warn_of_restarts.cache_clear()
    solver = TorchdiffeqSolver(gradient="adjoint")
    field, y0, t_eval = CosineField(), initial_state(), torch.linspace(0.0, 1.0, 9).double()
    with pytest.warns(UserWarning, match=r"anew between each two of 9 times.*or ask for fewer"):
        solver.solve(field, y0, t_eval)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.solve(field, y0, t_eval[:8])
        solver.solve(field, y0, t_eval)  # said once
        TorchdiffeqSolver().solve(field, y0, torch.linspace(0.0, 1.0, 10).double())


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_probes_that_are_rounded_to_a_time_or_to_each_other(ends):
    start, end = ends
    field, y0 = CosineField(), initial_state()
    t_eval = times(start, 0.5, end).requires_grad_()
    probes = times(*sorted((0.3, 0.3, 0.5, 0.8), reverse=start > end))
    solution, ys = TorchdiffeqSolver(rtol=1e-9, atol=1e-9).solve_probed(field, y0, t_eval, probes)
    for found, at in ((solution.ys, t_eval.detach()), (ys, probes)):
        expected = torch.stack([field.exact(y0, start, t) for t in at])
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    (slopes,) = torch.autograd.grad(solution.ys[1].sum(), t_eval)
    assert slopes[1] != 0.0


class Witness(RecordingField):
    """Counts steps the way torchdiffeq tells anybody who asks."""

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__(vector_field)
        self.steps = Counter()
        for kind in ("accept", "reject"):
            for where, phase in (("", ""), ("_adjoint", "_backward")):
                count = partial(self.count, f"{kind}ed{phase}")
                setattr(self, f"callback_{kind}_step{where}", count)

    def count(self, name, *_):
        self.steps[name] += 1


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

    solver = TorchdiffeqSolver("dopri5", 1e-6, 1e-6, "adjoint", seminorm, options=options)
    field = RecordingField(CosineField())
    solution = solver.solve(field, y0, times(*span))
    assert solution.stats.nfe_backward == 0
    solution.ys[-1].sum().backward()
    assert solution.stats == SolveStats(
        nfe_forward=forward, nfe_backward=len(witness.times) - forward, **witness.steps
    )
    assert len(field.times) == len(witness.times)
    assert len(witness.steps) == 4


def test_cases_counted_by_hand():
    # Nothing is an error at these tolerances: the step grows tenfold, and 0.01 + 0.1 + 1 reaches
    # the end; dopri5 evaluates 6 times a step and once at the start.
    solver = TorchdiffeqSolver("dopri5", 1e3, 1e3, options={"first_step": 0.01})
    solution = solver.solve(lambda t, y: torch.ones_like(y), torch.zeros(1), times(0.0, 1.0))
    assert solution.stats == SolveStats(nfe_forward=1 + 3 * 6, accepted=3)
    solver = TorchdiffeqSolver("midpoint", gradient="adjoint", options={"step_size": 0.25})
    solution = solver.solve(CosineField(), initial_state().requires_grad_(), times(0.0, 1.0))
    forward = {"nfe_forward": 8, "accepted": 4}
    assert solution.stats == SolveStats(**forward)
    solution.ys[-1].sum().backward()
    assert solution.stats == SolveStats(**forward, nfe_backward=8, accepted_backward=4)


def test_backpropagation_evaluates_nothing_again():
    field, y0 = RecordingField(CosineField()), initial_state().requires_grad_()
    solution = TorchdiffeqSolver(gradient="autograd").solve(field, y0, times(0.0, 2.0))
    solution.ys[-1].sum().backward()
    assert len(field.times) == solution.stats.nfe_forward
    assert solution.stats.nfe_backward == 0


def test_the_budget_stops_the_adjoint_and_each_backward_pass_has_its_own():
    def solve(max_nfe, scale=1e-3):
        solver = TorchdiffeqSolver("dopri5", 1e-2, 1e-2, "adjoint", max_nfe=max_nfe)
        y0 = scale * initial_state()
        return solver.solve(CosineField(), y0.requires_grad_(), times(0.0, 3.0))

    forward = solve(None).stats.nfe_forward
    solution = solve(forward)
    with pytest.raises(NFEBudgetExceededError, match="backward solve needs more than max_nfe"):
        (1e3 * solution.ys[-1]).sum().backward()
    assert solution.stats.nfe_backward == forward
    solution = solve(None)
    (1e3 * solution.ys[-1]).sum().backward()
    once = solution.stats.nfe_backward
    solution = solve(once)
    for _ in range(3):
        (1e3 * solution.ys[-1]).sum().backward(retain_graph=True)
    assert solution.stats.nfe_backward == 3 * once


@pytest.mark.parametrize("y0", [torch.ones(1), torch.ones(1, dtype=torch.float64)])
def test_a_solution_that_ends_underflows(y0):
    # y' = y^2 from y(0) = 1 is 1 / (1 - t): nothing beyond t = 1.
    with pytest.raises(StepSizeUnderflowError, match=r"forward solve: dt = .* t = 1\. .* float64"):
        TorchdiffeqSolver().solve(lambda t, y: y * y, y0, times(0.0, 2.0))


@pytest.mark.parametrize("options", [{}, {"min_step": 1e-3}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_that_breaks_down_and_a_batch_of_nan_are_named_so(value, options):
    def field(t, y):
        return -y if t < 0.5 else value * y

    solver = TorchdiffeqSolver(options=options)
    with pytest.raises(NonFiniteStateError, match=r"NaN or infinite at t = 0\.\d+ in the forward"):
        solver.solve(field, torch.ones(1), times(0.0, 2.0))
    with pytest.raises(NonFiniteStateError, match=r"at t = 0 in the forward solve.*batch and the"):
        solver.solve(lambda t, y: y, (torch.ones(2), torch.tensor([1.0, value])), times(0.0, 2.0))


def test_the_seminorm_spends_fewer_backward_evaluations():
    class Ripple(nn.Module):
        """State and adjoint are smooth, as ``p = 0``; the gradient in ``p`` is not."""

        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, t, y):
            return -y + self.p * torch.sin(40.0 * t)

    spent = {}
    for seminorm in (False, True):
        solver = TorchdiffeqSolver("dopri5", 1e-5, 1e-5, "adjoint", seminorm)
        solution = solver.solve(Ripple(), initial_state(), times(0.0, 3.0))
        solution.ys[-1].sum().backward()
        spent[seminorm] = solution.stats.nfe_backward
    assert spent[True] < spent[False] / 2


def test_frozen_parameters_are_left_alone():
    field, y0 = CosineField(), initial_state().requires_grad_()
    field.a.requires_grad_(False)
    solver = TorchdiffeqSolver(gradient="adjoint")
    solver.solve(field, y0, times(0.0, 1.0)).ys[-1].sum().backward()
    assert field.a.grad is None
    assert y0.grad.isfinite().all()


def test_parts_of_a_state_that_torchdiffeq_would_promote_are_refused():
    with pytest.raises(TypeError, match=r"one dtype, .*\[torch.float32, torch.float64\]"):
        TorchdiffeqSolver().solve(
            lambda t, y: y, (torch.ones(1), torch.ones(1).double()), times(0.0, 1.0)
        )
