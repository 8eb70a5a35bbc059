"""States, times, fields and settings that solvers refuse, each with a reason."""

import pytest
import torch
from torch import nn

from steer_lightning.nn import MLPField
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from tests.helpers.problems import CosineField, initial_state, times


@pytest.mark.parametrize("other", [torch.ones(()), torch.ones(8)])
def test_parts_with_batches_of_their_own_have_no_jacobian(other):
    with pytest.raises(ValueError, match="same number of samples for an implicit method"):
        RosenbrockSolver().solve(lambda t, y: y, (torch.ones(4, 2), other), times(0.0, 1.0))


def test_a_complex_field_is_refused_where_the_state_is_real():
    with pytest.raises(TypeError, match=r"Expected a complex state .* torch.complex64, but got"):
        AdaptiveSolver().solve(lambda t, y: 1j * y, torch.ones(1), times(0.0, 1.0))


SOLVERS = [
    AdaptiveSolver(), RosenbrockSolver(), FixedGridSolver(),
    TorchdiffeqSolver(), TorchdiffeqSolver(gradient="adjoint"),
]  # fmt: skip
Y0, SPAN = initial_state(), times(0.0, 1.0)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (3, 1)])
@pytest.mark.parametrize("solver", [*SOLVERS, TorchdiffeqSolver("rk4")], ids=repr)
def test_a_field_that_returns_another_shape_is_refused(solver, shape):
    class Field(nn.Module):
        def forward(self, t, y):
            return torch.ones(shape).double()

    with pytest.raises(ValueError, match=r"the shapes of the state, \[\(3, 2\)\], but got \["):
        solver.solve(Field(), Y0, SPAN)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_times_may_be_more_precise_than_the_state(solver):
    field, y0 = MLPField(2, (4,)), torch.ones(3, 2)
    ys, expected = (solver.solve(field, y0, t_eval).ys for t_eval in (SPAN, SPAN.float()))
    torch.testing.assert_close(ys, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(
    ("y0", "t_eval", "error", "message"),
    [
        (Y0, torch.tensor([0.0]), ValueError, r"shape \(T,\) with T >= 2, but got shape \(1,\)"),
        (Y0, torch.zeros(2, 2), ValueError, r"but got shape \(2, 2\)"),
        (Y0, times(0.0, 1.0, 1.0), ValueError, "strictly increasing .* drop repeated"),
        (Y0, times(0.0, 2.0, 1.0), ValueError, "increasing or strictly decreasing"),
        (Y0, times(0.0, float("nan")), ValueError, r"but got \[0.0, nan\]"),
        (Y0, times(0.0, float("inf")), ValueError, r"finite and strictly .* got \[0.0, inf\]"),
        (Y0, torch.tensor([0, 1]), TypeError, "`t_eval` to be float32 or float64, but got torch."),
        (Y0, SPAN.half(), TypeError, "but got torch.float16"),
        (Y0.half(), SPAN, TypeError, "float32 or float64, but got torch.float16.*autocast"),
        (Y0.long(), SPAN, TypeError, "but got torch.int64"),
        ((Y0, Y0.bfloat16()), SPAN, TypeError, "but got torch.bfloat16"),
        ([Y0], SPAN, TypeError, "a tensor or a tuple of tensors, but got list"),
        (Y0[:0], SPAN, ValueError, r"at least one sample, but got a state of shape \(0, 2\)"),
        ((Y0[:0], torch.ones(0)), SPAN, ValueError, r"of shape \(0, 2\)"),
    ],
)
def test_bad_states_and_times_are_refused_before_anything_is_evaluated(
    solver, y0, t_eval, error, message
):
    def unreachable(t, y):
        raise AssertionError("the vector field was evaluated")

    with pytest.raises(error, match=message):
        solver.solve(unreachable, y0, t_eval)


TOLERANCES = [
    ({"rtol": 0.0}, r"Expected `rtol` to be finite and > 0, but got 0\.0"),
    ({"atol": float("nan")}, "Expected `atol` to be finite and > 0, but got nan"),
    ({"max_nfe": 0}, "Expected `max_nfe` to be None or >= 1, but got 0"),
]

FIRST_STEPS = [
    ({"first_step": 0.0}, "Expected `first_step` to be finite and > 0, 'auto' or"),
    ({"first_step": "last"}, "Expected `first_step` to be one of"),
]

BAD = {
    AdaptiveSolver: [
        *TOLERANCES,
        *FIRST_STEPS,
        ({"method": "dopri"}, "Expected `method` .* Did you mean 'dopri5'"),
        ({"stiff": "switched"}, "Expected `stiff` .* Did you mean 'switch'"),
        ({"method": "bosh3", "stiff": "warn"}, r"'tsit5'\] with stiff='warn', .*bosh3"),
    ],
    RosenbrockSolver: [
        *TOLERANCES,
        *FIRST_STEPS,
        ({"method": "rodas5"}, "Expected `method` .* Did you mean 'rodas5p'"),
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
    ],
}


@pytest.mark.parametrize(
    ("solver_class", "settings", "message"),
    [(solver, *case) for solver, cases in BAD.items() for case in cases],
)
def test_bad_settings_are_refused(solver_class, settings, message):
    with pytest.raises(ValueError, match=message):
        solver_class(**settings)


@pytest.mark.parametrize("solver_class", [AdaptiveSolver, RosenbrockSolver, TorchdiffeqSolver])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-40), (torch.float64, 1e-300)])
def test_a_tolerance_that_the_dtype_cannot_resolve_is_refused(solver_class, dtype, atol):
    y0, field = 0.0 * initial_state(dtype=dtype), CosineField().to(dtype)
    with pytest.raises(
        ValueError, match=rf"`atol` of at least .* state of {dtype}, .* got {atol:g}"
    ):
        solver_class(rtol=1e-6, atol=atol).solve(field, y0, times(0.0, 1.0))
    solver_class(rtol=1e-300, atol=1e-6).solve(field, y0, times(0.0, 1.0))
