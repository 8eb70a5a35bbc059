"""Linearizations of fields, and linear systems made of them."""

import pytest
import torch
from torch import nn

from steer_lightning.horizon import WarpedField
from steer_lightning.horizon.time_warp import TimeWarp
from steer_lightning.nn import MLPField
from steer_lightning.solvers.jacobian import Layout, linearize
from steer_lightning.solvers.linear_systems import LinearSystems
from tests.helpers.models import RecordingField, seeded
from tests.helpers.problems import CosineField, LinearField, initial_state, jacobians, times
from tests.helpers.stiff import solve


class Mixed(nn.Module):
    """A tuple of an image and an integral, of which the field's Jacobian is not symmetric."""

    def forward(self, t, state):
        y, total = state
        rows = y.flatten(1)
        turned = torch.stack([rows[:, 1] * total, t * rows[:, 0] ** 2], dim=1)
        return turned.view_as(y), rows.prod(1) + torch.sin(t)


def test_a_tuple_is_linearized_as_one_vector():
    state = (initial_state().view(3, 1, 2), times(0.3, 0.5, 0.7))
    layout = Layout(state)
    assert (layout.n_samples, layout.dimension) == (3, 3)
    assert all(map(torch.equal, layout.unpack(layout.pack(state)), state))
    found, t, flat = linearize(Mixed(), 0.4, state), times(0.4)[0], layout.pack(state)
    torch.testing.assert_close(found.slope, layout.pack(Mixed()(t, state)))
    one = Layout((state[0][:1], state[1][:1]))
    for i in range(3):
        expected = torch.autograd.functional.jacobian(
            lambda row: one.pack(Mixed()(t, one.unpack(row))), flat[i : i + 1]
        )
        torch.testing.assert_close(found.jacobian[i], expected[0, :, 0])
    expected = torch.stack([0.0 * t.expand(3), state[0][:, 0, 0] ** 2, torch.cos(t).expand(3)], 1)
    torch.testing.assert_close(found.drift, expected)


@pytest.mark.parametrize("time_dependent", [False, True])
def test_the_jacobian_of_a_network_is_that_of_reverse_mode(time_dependent):
    field = seeded(MLPField, 2, (5,), time_dependent=time_dependent).double()
    recording, y, t = (
        RecordingField(field),
        initial_state(),
        times(0.4)[0],
    )  # it hides `autonomous`
    timed = linearize(recording, 0.4, y)
    assert len(recording.times) == 1
    plain = linearize(field, 0.4, y)
    # Under hooks, by forward mode.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        forward = linearize(field, 0.4, y)
    for found in (timed, plain, forward):
        torch.testing.assert_close(found.jacobian, jacobians(field, t, y))
        torch.testing.assert_close(found.slope, field(t, y))
    assert (plain.drift is None) == (forward.drift is None) == field.autonomous
    if time_dependent:
        torch.testing.assert_close(forward.drift, timed.drift)
        torch.testing.assert_close(plain.drift, timed.drift)
    else:
        assert float(timed.drift.abs().max()) == 0.0


class OwnJacobian(CosineField):
    """Brings its Jacobian along, and counts."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def jacobian(self, t, y):
        self.asked += 1
        diagonal = (self.a * torch.cos(t)).reshape(-1, 1).expand(len(y), y.shape[1])
        return torch.diag_embed(diagonal)


@pytest.mark.parametrize("warp", [False, True])
def test_a_field_may_bring_its_own_jacobian(warp):
    own, found = OwnJacobian(), []
    for field in (own, CosineField()):
        if warp:
            field = WarpedField(field, TimeWarp(0.1, 0.2, times(0.5, 1.0, 1.5)))
        found.append(solve(field, initial_state(), 0.1, 1.1))
    assert found[0].stats == found[1].stats
    assert own.asked == found[0].stats.jacobians > 0
    torch.testing.assert_close(found[0].ys, found[1].ys, rtol=1e-12, atol=0.0)


def test_a_jacobian_of_the_wrong_shape_is_refused():
    field = CosineField()
    field.jacobian = lambda t, y: torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"`jacobian` to have shape \(3, 2, 2\), .* got \(3, 2\)"):
        solve(field, initial_state(), 0.0, 1.0)


def test_a_field_that_ignores_time_may_bring_its_jacobian_too():
    field, y0 = LinearField(), initial_state()
    field.jacobian = lambda t, y: field.a.expand(len(y), 2, 2)
    ys = solve(field, y0, 0.0, 1.0, tolerance=1e-9).ys
    torch.testing.assert_close(ys[-1], field.exact(y0, 0.0, 1.0), rtol=1e-7, atol=0.0)


def test_gradients_of_linear_systems_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    matrix, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 3), (2, 3))
    )

    def solution(matrix, right):
        systems = LinearSystems(matrix)
        return systems.solve(systems.solve(right).square())

    expected = torch.linalg.solve(matrix, torch.linalg.solve(matrix, right).square())
    torch.testing.assert_close(solution(matrix, right), expected)
    assert torch.autograd.gradcheck(solution, (matrix, right))
    assert torch.autograd.gradgradcheck(solution, (matrix, right))
