"""A field that says which parts of its state set the step size."""

from functools import partial

import pytest
import torch
from torch import nn

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn import CompiledField
from steer_lightning.nn import compiled as compiled_field
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, SolveStats, TorchdiffeqSolver
from steer_lightning.solvers.torchdiffeq import ADAPTIVE_METHODS
from tests.helpers.problems import CosineField, initial_state, times


class BesideIntegrals(nn.Module):
    """A slow field beside integrals that ask for short steps."""

    def __init__(self, controlled):
        super().__init__()
        self.slow = CosineField()
        if controlled is not None:
            self.controlled_parts = controlled

    def forward(self, t, state):
        y = state[0]
        return self.slow(t, y), torch.cos(20.0 * t) * y.sum(1), torch.sin(30.0 * t) * y.sum(1)


def state():
    return initial_state(), *torch.zeros(2, 3, dtype=torch.float64)


def solve(field, y0, method="dopri5", **settings):
    solver = TorchdiffeqSolver(method, **{"rtol": 1e-3, "atol": 1e-3, **settings})
    return solver.solve(field, y0, times(0.0, 1.0, 2.0))


@pytest.fixture
def eager(monkeypatch):
    """Compiled fields run as they are."""
    monkeypatch.setattr(compiled_field, "compiled", lambda function: function)


def plain(field):
    return field


def warped(field, rate=1.0):
    return WarpedField(field, TimeWarp(0.0, 0.0, torch.as_tensor(rate, dtype=torch.float64)))


WRAPPERS = [plain, CompiledField, warped, partial(warped, rate=[1.0] * 3)]


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_the_rest_neither_sets_the_step_nor_moves_the_state(method, gradient):
    alone = solve(CosineField(), initial_state(), method, gradient=gradient)
    beside = solve(BesideIntegrals(1), state(), method, gradient=gradient)
    assert beside.stats == alone.stats
    assert torch.equal(beside.ys[0], alone.ys)
    everything = solve(BesideIntegrals(None), state(), method, gradient=gradient)
    assert everything.stats.accepted > 1.5 * alone.stats.accepted


@pytest.mark.parametrize("controlled", [2, 3, 4])
def test_control_of_so_many_parts_is_torchdiffeqs_of_so_many(controlled):
    field = BesideIntegrals(None)
    expected = solve(lambda t, y: field(t, y)[:controlled], state()[:controlled])
    found = solve(BesideIntegrals(controlled), state())
    assert found.stats == expected.stats
    assert all(torch.equal(a, b) for a, b in zip(found.ys, expected.ys, strict=False))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_fields_around_a_field_keep_what_it_controls(wrap):
    assert wrap(BesideIntegrals(1)).controlled_parts == 1
    assert getattr(wrap(BesideIntegrals(None)), "controlled_parts", None) is None
    expected = solve(CosineField(), initial_state()).stats
    assert solve(wrap(BesideIntegrals(1)), state()).stats == expected
    assert solve(wrap(BesideIntegrals(None)), state()).stats.accepted > expected.accepted


@pytest.mark.parametrize("settings", [{}, {"gradient": "adjoint"}])
def test_a_norm_of_the_users_wins(settings):
    heard = []

    def norm(parts):
        heard.append(len(parts))
        return torch.zeros((), dtype=torch.float64)

    options = {"norm": norm, "first_step": 0.01}
    stats = solve(BesideIntegrals(1), state(), options=options, **settings).stats
    assert set(heard) == {3}
    assert stats == SolveStats(nfe_forward=1 + 4 * 6, accepted=4)  # 0.01, 0.1, 1 and 10


@pytest.mark.parametrize("seminorm", [False, True])
def test_the_adjoint_beside_integrals_has_the_gradient_of_exact_ones(seminorm):
    found = []
    for controlled, settings in ((None, {}), (1, {"gradient": "adjoint", "seminorm": seminorm})):
        field, y0 = BesideIntegrals(controlled), state()
        y0[0].requires_grad_()
        solver = TorchdiffeqSolver("dopri5", 1e-9, 1e-9, **settings)
        ys = solver.solve(field, y0, times(0.0, 0.5)).ys
        loss = ys[0][-1].square().sum() + 10.0 * ys[1][-1].sum() + ys[2][-1].sum()
        found.append(torch.autograd.grad(loss, (y0[0], field.slow.a)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", [TorchdiffeqSolver("rk4"), FixedGridSolver("rk4", 3)], ids=repr)
def test_a_fixed_grid_has_no_steps_to_control(solver):
    found = solver.solve(BesideIntegrals(1), state(), times(0.0, 1.0))
    expected = solver.solve(BesideIntegrals(None), state(), times(0.0, 1.0))
    assert found.stats == expected.stats != SolveStats()
    assert all(torch.equal(a, b) for a, b in zip(found.ys, expected.ys, strict=True))


@pytest.mark.parametrize("controlled", [1, 2, 3])
def test_a_controlled_part_that_stands_still_leaves_the_gradient_finite(controlled):
    a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def still(t, state):
        return a * state[0], 0.0 * a * state[1], state[0].sum(1)

    still.controlled_parts = controlled
    ys = solve(still, state(), rtol=1e-9, atol=1e-9).ys
    (found,) = torch.autograd.grad(ys[0][-1].sum(), a)
    expected = 2.0 * torch.exp(times(1.8)) * initial_state().sum()
    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("wrap", [plain, warped])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
def test_our_solver_lets_the_leading_parts_alone_set_the_steps(method, wrap):
    solver = AdaptiveSolver(method, 1e-3, 1e-3)
    counts = [
        solver.solve(wrap(BesideIntegrals(controlled)), state(), times(0.0, 2.0)).stats
        for controlled in (1, 3, None)
    ]
    alone = solver.solve(CosineField(), initial_state(), times(0.0, 2.0)).stats
    assert counts[0] == alone
    assert counts[1] == counts[2]
    assert counts[1].nfe_forward > 2 * counts[0].nfe_forward
