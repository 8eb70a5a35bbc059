import warnings

import pytest
import torch
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS

from steer_lightning.solvers import TorchdiffeqSolver
from steer_lightning.solvers import torchdiffeq as adapter
from steer_lightning.solvers.torchdiffeq import FIXED_METHODS, METHODS
from tests.helpers.problems import CosineField, initial_state, times


def options_for(method):
    """Steps so short that the low-order interpolants between them are as exact as the steps."""
    if method == "scipy_solver":
        return {}
    return {"step_size": 0.002} if method in FIXED_METHODS else {"max_step": 0.02}


def test_every_method_of_torchdiffeq_is_there_by_name():
    assert set(METHODS) == set(SOLVERS)
    assert len(METHODS) == len(set(METHODS))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("span", [(0.0, 0.5), (0.5, 0.0)])
def test_every_method_solves_a_closed_form_without_a_warning(method, span):
    gradient = "adjoint" if method == "scipy_solver" else "autograd"
    solver = TorchdiffeqSolver(method, 1e-7, 1e-7, gradient=gradient, options=options_for(method))
    field, y0 = CosineField(), initial_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ys = solver.solve(field, y0, times(*span)).ys
    tolerance = 2e-3 if method == "euler" else 2e-5
    torch.testing.assert_close(ys[-1], field.exact(y0, *span), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_the_result_is_torchdiffeqs_to_the_last_bit(method, gradient):
    field, y0, t_eval = CosineField(), initial_state(), times(0.0, 0.4, 2.0)
    call = odeint if gradient == "autograd" else odeint_adjoint
    expected = call(field, y0, t_eval, rtol=1e-3, atol=1e-4, method=method)
    solver = TorchdiffeqSolver(method, rtol=1e-3, atol=1e-4, gradient=gradient)
    assert torch.equal(solver.solve(field, y0, t_eval).ys, expected)


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_tolerances_method_and_options_reach_torchdiffeq(monkeypatch, gradient):
    heard = {}

    def listen(func, y0, t, **settings):
        heard.update(settings)
        return torch.stack([y0] * len(t))

    monkeypatch.setattr(adapter, "odeint" if gradient == "autograd" else "odeint_adjoint", listen)
    options = {"first_step": 0.01, "max_num_steps": 7}
    field = CosineField()
    TorchdiffeqSolver("bosh3", 1e-2, 1e-3, gradient, options=options).solve(
        field, initial_state(), times(0.0, 1.0)
    )
    params = heard.pop("adjoint_params", None)
    assert heard == {"rtol": 1e-2, "atol": 1e-3, "method": "bosh3", "options": options}
    assert (params == (field.a,)) if gradient == "adjoint" else (params is None)


def test_the_settings_are_not_changed_by_a_solve():
    options = {"step_size": 0.1}
    solver = TorchdiffeqSolver("euler", options=options)
    options["step_size"] = 0.5
    stats = solver.solve(CosineField(), initial_state(), times(0.0, 1.0)).stats
    assert solver.options == {"step_size": 0.1}
    assert stats.nfe_forward == 10


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
    with pytest.warns(UserWarning, match=r"anew between each two of 9 times.*checkpoint=True"):
        solver.solve(field, y0, t_eval)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.solve(field, y0, t_eval[:8])
        solver.solve(field, y0, t_eval)  # said once
        TorchdiffeqSolver().solve(field, y0, torch.linspace(0.0, 1.0, 10).double())
