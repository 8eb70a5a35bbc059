"""What every solver accepts, refuses and reports."""

import copy

import pytest
import torch

from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    NFEBudgetExceededError,
    RosenbrockSolver,
    SolveStats,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.tableaus import ADAPTIVE, FIXED
from steer_lightning.utils.problem import default_times, first_part, has_float64
from tests.helpers.models import RecordingField
from tests.helpers.problems import CosineField, OscillatorField, initial_state, times

SOLVERS = [
    AdaptiveSolver(rtol=1e-8, atol=1e-8),
    AdaptiveSolver("tsit5", rtol=1e-8, atol=1e-8, checkpoint=True),
    AdaptiveSolver("bosh3", rtol=1e-8, atol=1e-8),
    RosenbrockSolver(rtol=1e-8, atol=1e-8),
    RosenbrockSolver("rodas4", rtol=1e-8, atol=1e-8, checkpoint=True),
    RosenbrockSolver("rosenbrock23", rtol=1e-6, atol=1e-7),
    TorchdiffeqSolver(rtol=1e-8, atol=1e-8),
    TorchdiffeqSolver(rtol=1e-8, atol=1e-8, gradient="adjoint"),
    TorchdiffeqSolver("rk4", options={"step_size": 0.01}),
    FixedGridSolver(n_steps=50),
    FixedGridSolver(n_steps=50, checkpoint=True),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


def close(solver):
    """How exact a solver is, whose estimate of a step's error is of the next order."""
    tolerance = 1e-3 if solver.__dict__.get("method") == "rosenbrock23" else 1e-6
    return {"rtol": tolerance, "atol": tolerance}


@every_solver
@pytest.mark.parametrize("t_eval", [(0.0, 1.5), (1.5, 0.0), (0.2, 0.9, 1.4), (1.4, 0.9, -0.2)])
def test_solves_in_both_directions_at_every_time(solver, t_eval):
    field, y0 = CosineField(), initial_state()
    ys = solver.solve(field, y0, times(*t_eval)).ys
    assert torch.equal(ys[0], y0)
    expected = torch.stack([field.exact(y0, t_eval[0], t) for t in t_eval])
    torch.testing.assert_close(ys, expected, **close(solver))


@every_solver
def test_states_may_be_tuples(solver):
    field = OscillatorField()
    y0 = (initial_state(), -initial_state())
    ys = solver.solve(field, y0, times(0.0, 0.5, 1.0)).ys
    for part, expected in zip(ys, field.exact(y0, 0.0, 1.0), strict=True):
        assert part.shape == (3, 3, 2)
        torch.testing.assert_close(part[-1], expected, **close(solver))


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(solver, dtype):
    def field(t, y):
        assert y.dtype == dtype
        return -y

    if getattr(solver, "gradient", "autograd") == "adjoint":
        field = CosineField().to(dtype)
    y0 = initial_state(dtype=dtype)
    assert solver.solve(field, y0, times(0.0, 1.0).to(dtype)).ys.dtype == dtype


@every_solver
def test_counts_add_up_over_solves(solver):
    field, y0 = CosineField(), initial_state()
    once = solver.solve(field, y0, times(0.0, 1.0)).stats
    assert once.nfe_forward > 0
    assert once.accepted > 0
    stats = SolveStats()
    for _ in range(2):
        assert solver.solve(field, y0, times(0.0, 1.0), stats=stats).stats is stats
    assert stats.nfe_forward == 2 * once.nfe_forward
    assert stats.accepted == 2 * once.accepted
    stats.reset()
    assert stats == SolveStats()


@every_solver
@pytest.mark.parametrize(
    ("t_eval", "error", "message"),
    [
        (torch.tensor([0.0]), ValueError, r"shape \(T,\) with T >= 2, but got shape \(1,\)"),
        (torch.tensor(1.0), ValueError, r"but got shape \(\)"),
        (torch.zeros(2, 2), ValueError, r"but got shape \(2, 2\)"),
        (torch.tensor([0.0, 1.0, 1.0]), ValueError, "strictly increasing .* drop repeated"),
        (torch.tensor([0.0, 2.0, 1.0]), ValueError, "strictly increasing or strictly decreasing"),
        (torch.tensor([0.0, float("nan")]), ValueError, r"but got \[0.0, nan\]"),
        (
            torch.tensor([0, 1]),
            TypeError,
            "`t_eval` to be float32 or float64, but got torch.int64",
        ),
        (torch.tensor([0.0, 1.0]).half(), TypeError, "but got torch.float16"),
    ],
)
def test_bad_times_are_refused_before_anything_is_evaluated(solver, t_eval, error, message):
    with pytest.raises(error, match=message):
        solver.solve(unreachable, initial_state(), t_eval)


@every_solver
@pytest.mark.parametrize(
    ("y0", "error", "message"),
    [
        (torch.ones(2).half(), TypeError, "float32 or float64, but got torch.float16.*autocast"),
        (torch.ones(2).bfloat16(), TypeError, "but got torch.bfloat16"),
        (torch.ones(2, dtype=torch.int64), TypeError, "but got torch.int64"),
        ((torch.ones(2), torch.ones(2).half()), TypeError, "but got torch.float16"),
        ([torch.ones(2)], TypeError, "a tensor or a tuple of tensors, but got list"),
        (torch.ones(0, 2), ValueError, r"at least one sample, but got a state of shape \(0, 2\)"),
        ((torch.ones(0, 2), torch.ones(0)), ValueError, r"of shape \(0, 2\)"),
    ],
)
def test_bad_states_are_refused_before_anything_is_evaluated(solver, y0, error, message):
    with pytest.raises(error, match=message):
        solver.solve(unreachable, y0, times(0.0, 1.0))


def unreachable(t, y):
    raise AssertionError("the vector field was evaluated")


def test_a_complex_state_is_solved():
    y0 = torch.ones(2, dtype=torch.complex128)
    ys = FixedGridSolver(n_steps=50).solve(lambda t, y: 1j * y, y0, times(0.0, 1.0)).ys
    expected = torch.exp(torch.tensor(1j, dtype=torch.complex128)).expand(2)
    torch.testing.assert_close(ys[-1], expected, rtol=1e-6, atol=1e-6)


def test_times_for_a_state_have_its_precision():
    assert default_times(torch.ones(1), 0.0, 1.0).dtype == torch.float64
    assert default_times(torch.ones(1, dtype=torch.float64), 0.0).dtype == torch.float64
    assert default_times((torch.ones(1, dtype=torch.complex128),), 0.0).dtype == torch.float64
    assert default_times(torch.ones(1, device="meta"), 0.0).device.type == "meta"
    assert first_part((1 * torch.ones(1), torch.zeros(1))).item() == 1.0
    assert has_float64(torch.device("cpu"))
    assert not has_float64(torch.device("mps"))


@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize(
    ("solver_class", "method"),
    [(AdaptiveSolver, m) for m in ADAPTIVE] + [(FixedGridSolver, m) for m in FIXED],
)
def test_checkpointing_changes_no_bit_and_counts_what_it_evaluates_again(
    solver_class, method, state
):
    results = []
    for checkpoint in (False, True):
        field = RecordingField(CosineField() if state == "tensor" else OscillatorField())
        y0 = initial_state().requires_grad_()
        solution = solver_class(method, checkpoint=checkpoint).solve(
            field, y0 if state == "tensor" else (y0, 2.0 * y0), times(0.0, 3.0)
        )
        y = solution.ys if state == "tensor" else torch.cat(solution.ys, dim=1)
        forward, stats = len(field.times), solution.stats
        assert stats.nfe_forward == forward
        gradients = torch.autograd.grad(y[-1].square().sum(), (y0, *field.parameters()))
        again = len(field.times) - forward
        n_stages = len({**ADAPTIVE, **FIXED}[method].c) - (method in ADAPTIVE)
        assert again == stats.nfe_backward == (n_stages * stats.accepted if checkpoint else 0)
        results.append((y.detach(), *gradients))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


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


TOLERANCES = [
    ({"rtol": 0.0}, r"Expected `rtol` to be finite and > 0, but got 0\.0"),
    ({"atol": float("nan")}, "Expected `atol` to be finite and > 0, but got nan"),
    ({"atol": float("inf")}, "Expected `atol` to be finite and > 0, but got inf"),
    ({"max_nfe": 0}, "Expected `max_nfe` to be None or >= 1, but got 0"),
]
BAD = {
    AdaptiveSolver: [
        *TOLERANCES,
        ({"method": "dopri"}, "Expected `method` .* Did you mean 'dopri5'"),
        ({"first_step": 0.0}, "Expected `first_step` to be finite and > 0, 'auto' or"),
        ({"first_step": "last"}, "Expected `first_step` to be one of"),
        ({"stiff": "switched"}, "Expected `stiff` .* Did you mean 'switch'"),
        (
            {"method": "bosh3", "stiff": "warn"},
            r"'tsit5'\] with stiff='warn', .*bosh3",
        ),
    ],
    RosenbrockSolver: [
        *TOLERANCES,
        ({"method": "rodas5"}, "Expected `method` .* Did you mean 'rodas5p'"),
        ({"first_step": 0.0}, "Expected `first_step` to be finite and > 0, 'auto' or"),
        ({"max_dimension": 0}, "Expected `max_dimension` >= 1, but got 0"),
    ],
    TorchdiffeqSolver: [
        *TOLERANCES,
        ({"method": "dopri6"}, "Expected `method` to be one of .* Did you mean 'dopri"),
        ({"gradient": "ajoint"}, "Expected `gradient` .* Did you mean 'adjoint'"),
        ({"seminorm": True}, "gradient='adjoint' with seminorm=True.* got gradient='autograd'"),
        ({"method": "scipy_solver"}, "'scipy_solver' leaves torch .* gradient='adjoint'"),
    ],
    FixedGridSolver: [
        ({"method": "heun2"}, "Expected `method` .* Did you mean 'heun'"),
        ({"n_steps": 0}, "Expected `n_steps` >= 1, but got 0"),
        ({"cuda_graphs": True}, "compile=True with cuda_graphs"),
    ],
}


@pytest.mark.parametrize(
    ("solver_class", "settings", "message"),
    [(solver, *case) for solver, cases in BAD.items() for case in cases],
)
def test_bad_settings_are_refused(solver_class, settings, message):
    with pytest.raises(ValueError, match=message):
        solver_class(**settings)


def test_repr_names_what_decides_the_numbers():
    assert [
        repr(AdaptiveSolver("tsit5", 1e-3, 1e-4)),
        repr(RosenbrockSolver("rodas4", 1e-3, 1e-4)),
        repr(FixedGridSolver("heun", 3)),
        repr(TorchdiffeqSolver("bosh3", 1e-3, 1e-4, "adjoint")),
    ] == [
        "AdaptiveSolver(method='tsit5', rtol=0.001, atol=0.0001)",
        "RosenbrockSolver(method='rodas4', rtol=0.001, atol=0.0001)",
        "FixedGridSolver(method='heun', n_steps=3)",
        "TorchdiffeqSolver(method='bosh3', rtol=0.001, atol=0.0001, gradient='adjoint')",
    ]
