"""What a field may hold under an adjoint, and what the adjoint refuses."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.problems import CosineField, initial_state, times


def test_closures_have_gradients_by_autograd_and_are_refused_by_an_adjoint_that_needs_them():
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    y0, span = initial_state(), times(0.0, 1.0)
    ys = TorchdiffeqSolver(rtol=1e-9, atol=1e-9).solve(lambda t, y: -a * y, y0, span).ys
    (grad,) = torch.autograd.grad(ys[-1].sum(), a)
    torch.testing.assert_close(grad, -y0.sum() * torch.exp(times(-1.0))[0])
    adjoint = TorchdiffeqSolver(gradient="adjoint")
    with pytest.raises(TypeError, match=r"nn.Module for gradient='adjoint'.* but got function"):
        adjoint.solve(lambda t, y: -a * y, y0, span)
    with torch.no_grad():
        ys = adjoint.solve(lambda t, y: -a * y, y0, span).ys
    torch.testing.assert_close(ys[-1], y0 * torch.exp(times(-1.0)), rtol=1e-4, atol=1e-4)


class Conditional(nn.Module):
    """A field that holds a context."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def forward(self, t, y):
        return sum(self.context) * y if isinstance(self.context, tuple) else self.context * y


class Holding(nn.Module):
    """A field that holds what has a parameter and is no part of it."""

    def __init__(self, wrap):
        super().__init__()
        self.outer = nn.Linear(2, 2, dtype=torch.float64) if wrap is None else None
        self.held = wrap and wrap(nn.Linear(2, 2, dtype=torch.float64))

    def forward(self, t, y):
        return -y


@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: [module],
        lambda module: {"a": ([module.weight],)},
        lambda module: module.forward,
        lambda module: lambda y: module(y),
    ],
    ids=["list", "nested", "method", "closure"],
)
def test_an_adjoint_refuses_modules_that_are_no_parts(wrap):
    solver, problem = TorchdiffeqSolver(gradient="adjoint"), (initial_state(), times(0.0, 1.0))
    with pytest.raises(ValueError, match=r"in `held` of Holding\. .* register the module that"):
        solver.solve(Holding(wrap), *problem)
    solver.solve(Holding(None), *problem)


@pytest.mark.parametrize("held", [lambda x: x, lambda x: (1.0, 2.0 * x)])
def test_an_adjoint_refuses_a_context_whose_gradient_it_would_drop(held):
    context = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solver, problem = TorchdiffeqSolver(gradient="adjoint"), (initial_state(), times(0.0, 1.0))
    with pytest.raises(
        ValueError, match=r"got one in `context` of Conditional\. Make it a part of the st"
    ):
        solver.solve(Conditional(held(context)), *problem)
    ys = TorchdiffeqSolver().solve(Conditional(held(context)), *problem).ys
    assert torch.autograd.grad(ys[-1].sum(), context)[0] > 0.0  # what the message proposes
    solver.solve(Conditional(held(context.detach())), *problem)
    parameter = nn.Parameter(context.detach())
    solver.solve(Conditional(parameter), *problem).ys[-1].sum().backward()
    assert parameter.grad > 0.0


def test_an_adjoint_refuses_a_second_derivative_that_it_has_not():
    field, y0 = CosineField(), initial_state().requires_grad_()
    y = TorchdiffeqSolver(gradient="adjoint").solve(field, y0, times(0.0, 1.0)).ys[-1]
    torch.autograd.grad(y.sum(), y0, retain_graph=True)
    torch.autograd.grad(y.square().sum(), y, create_graph=True)  # needs no adjoint
    with pytest.raises(RuntimeError, match=r"create_graph=True: .* Use gradient='autograd'"):
        torch.autograd.grad(y.sum(), y0, create_graph=True)


def test_an_adjoint_refuses_complex_states_where_torchdiffeq_is_wrong():
    solver, y0 = TorchdiffeqSolver(gradient="adjoint"), torch.ones(2, 1, dtype=torch.complex128)
    t = times(0.0, 1.0)
    with pytest.raises(TypeError, match="Expected a real state for gradient='adjoint'"):
        solver.solve(nn.Linear(1, 1).double(), y0, t)
    with pytest.raises(TypeError, match="with a gradient in the times"):
        solver.solve(nn.Identity(), y0, t.requires_grad_())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "normed",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 1),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_weights_that_hooks_make_are_no_tensors_of_their_own(normed):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = normed(nn.Linear(2, 2, dtype=torch.float64))

        def forward(self, t, y):
            return self.inner(y).tanh()

    field, found = Field().eval(), []
    for gradient in ("autograd", "adjoint", "adjoint"):
        solver = TorchdiffeqSolver(rtol=1e-8, atol=1e-8, gradient=gradient)
        y = solver.solve(field, initial_state(), times(0.0, 1.0)).ys[-1]
        found.append(torch.autograd.grad(y.square().sum(), list(field.parameters())))
    for again in found[1:]:
        torch.testing.assert_close(again, found[0], rtol=1e-5, atol=1e-6)
