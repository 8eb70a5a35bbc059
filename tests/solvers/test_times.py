"""The times of a solve: their precision, and derivatives that pass through them."""

import pytest
import torch

from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, RosenbrockSolver
from steer_lightning.utils.problem import default_times, first_part, has_float64
from tests.helpers.problems import initial_state, times
from tests.solvers.test_contract import SOLVERS, TIGHT


@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if "torchdiffeq" not in s.__module__], ids=repr
)
def test_times_with_a_gradient_change_no_value(solver):
    """Far from zero, in float32, a step that begins at a rounded time is another step."""
    y0, t = initial_state(), torch.tensor([20_000.0, 20_000.5])
    found = [
        solver.solve(lambda t, y: -3.0 * y, y0, t.requires_grad_(moves)).ys
        for moves in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    scalar = solver.solve(lambda t, y: -y, torch.tensor(1.0), times(0.0, 1.0).requires_grad_()).ys
    assert scalar.dtype == torch.float32


@pytest.mark.parametrize(
    "solver", [AdaptiveSolver(**TIGHT), RosenbrockSolver(**TIGHT), FixedGridSolver(n_steps=50)],
    ids=repr,
)  # fmt: skip
def test_tangents_of_times_are_not_lost(solver):
    def of(t):
        return solver.solve(lambda t, y: -t * y, y0, t).ys[1:]

    y0, t = initial_state(), times(0.2, 0.7, 1.1)
    exact = torch.autograd.functional.jacobian(of, t)
    torch.testing.assert_close(torch.func.jacfwd(of)(t), exact, rtol=1e-7, atol=1e-7)


def test_times_for_a_state_have_its_precision():
    for y0 in (torch.ones(1), (torch.ones(1, dtype=torch.complex128),)):
        assert default_times(y0, 0.0, 1.0).dtype == torch.float64
    assert default_times(torch.ones(1, device="meta"), 0.0).device.type == "meta"
    assert first_part((1 * torch.ones(1), torch.zeros(1))).item() == 1.0
    assert has_float64(torch.device("cpu"))
    assert not has_float64(torch.device("mps"))
