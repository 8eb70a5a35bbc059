import pytest
import torch
from torch import nn

from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.problems import (
    CosineField,
    LinearField,
    OscillatorField,
    initial_state,
    times,
)

T_EVAL = times(0.0, 0.4, 1.0)


def solve(field, y0, t_eval=T_EVAL, **settings):
    return TorchdiffeqSolver(rtol=1e-9, atol=1e-9, **settings).solve(field, y0, t_eval).ys


def gradients(field, y0, t_eval, **settings):
    """Of a loss that looks at every time, in state, times and parameters."""
    y0, t_eval = y0.clone().requires_grad_(), t_eval.clone().requires_grad_()
    ys = solve(field, y0, t_eval, **settings)
    loss = (ys * torch.linspace(0.3, 1.0, ys.numel(), dtype=ys.dtype).reshape_as(ys)).sum()
    return torch.autograd.grad(loss, [y0, t_eval, *field.parameters()])


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_in_state_times_and_parameters(gradient, reverse):
    field = CosineField()

    def outputs(y0, t_eval, a):
        field.a = nn.Parameter(a) if gradient == "adjoint" else a
        return solve(field, y0, t_eval, gradient=gradient)

    t_eval = (T_EVAL.flip(0) if reverse else T_EVAL).clone().requires_grad_()
    y0 = initial_state(2, 1).requires_grad_()
    if gradient == "autograd":
        a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        del field.a
        assert torch.autograd.gradcheck(outputs, (y0, t_eval, a), atol=1e-6)
    else:
        a = torch.tensor(0.9, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda y0, t_eval: outputs(y0, t_eval, a), (y0, t_eval), atol=1e-6
        )


@pytest.mark.parametrize("field_class", [CosineField, LinearField])
@pytest.mark.parametrize("seminorm", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_adjoints_gradient_is_autograds(field_class, seminorm, reverse):
    field, y0 = field_class(), initial_state()
    t_eval = T_EVAL.flip(0) if reverse else T_EVAL
    expected = gradients(field, y0, t_eval, gradient="autograd")
    found = gradients(field, y0, t_eval, gradient="adjoint", seminorm=seminorm)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_the_parameters_gradient_is_the_closed_forms(gradient):
    field, y0 = CosineField(), initial_state()
    found = torch.autograd.grad(solve(field, y0, gradient=gradient)[-1].sum(), field.a)
    expected = torch.autograd.grad(field.exact(y0, 0.0, 1.0).sum(), field.a)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", ["autograd", "adjoint"])
def test_tuples_have_gradients(gradient):
    field = OscillatorField()
    x, v = initial_state().requires_grad_(), initial_state().requires_grad_()
    found = torch.autograd.grad(
        sum(part[-1].sum() for part in solve(field, (x, v), gradient=gradient)), (x, v, field.w)
    )
    expected = torch.autograd.grad(
        sum(part.sum() for part in field.exact((x, v), 0.0, 1.0)), (x, v, field.w)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


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
        solver = TorchdiffeqSolver(rtol=1e-6, atol=1e-6, gradient="adjoint", seminorm=seminorm)
        solution = solver.solve(Ripple(), initial_state(), times(0.0, 3.0))
        solution.ys[-1].sum().backward()
        spent[seminorm] = solution.stats.nfe_backward
    assert spent[True] < spent[False] / 2


def test_the_scipy_solver_has_the_adjoints_gradient():
    field, y0 = CosineField(), initial_state().requires_grad_()
    ys = solve(field, y0, times(0.0, 1.0), method="scipy_solver", gradient="adjoint")
    found = torch.autograd.grad(ys[-1].sum(), (y0, field.a))
    expected = torch.autograd.grad(field.exact(y0, 0.0, 1.0).sum(), (y0, field.a))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_frozen_parameters_are_left_alone():
    field, y0 = CosineField(), initial_state().requires_grad_()
    field.a.requires_grad_(False)
    solve(field, y0, gradient="adjoint")[-1].sum().backward()
    assert field.a.grad is None
    assert y0.grad.isfinite().all()


def test_the_adjoint_refuses_a_closure_whose_parameters_it_cannot_find():
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match=r"nn.Module for gradient='adjoint'.* but got function"):
        solve(lambda t, y: a * y, initial_state(), gradient="adjoint")


def test_the_adjoint_takes_a_closure_where_no_gradient_is_asked():
    with torch.no_grad():
        ys = solve(lambda t, y: -y, initial_state(), gradient="adjoint")
    torch.testing.assert_close(ys[-1], initial_state() * torch.exp(times(-1.0)))


def test_autograd_takes_closures():
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    ys = solve(lambda t, y: -a * y, initial_state(), gradient="autograd")
    (grad,) = torch.autograd.grad(ys[-1].sum(), a)
    torch.testing.assert_close(grad, -initial_state().sum() * torch.exp(times(-1.0))[0])
