import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.nn import CNF, ConcatSquashField, MLPField
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.problems import TimedLinearField

T0, T1 = 0.5, 1.5
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ENDS = ["t0", "t1"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def linear_flow(data_at, **arguments):
    arguments = {"solver": TorchdiffeqSolver(**TIGHT), **arguments}
    return CNF(TimedLinearField(), (2,), t_span=(T0, T1), data_at=data_at, **arguments)


def exact_log_prob(flow, x, t=None, end=T1):
    """Log-density at time ``t`` of points whose moved end is at ``end``."""
    base, data = (T0, end) if flow.data_at == "t1" else (end, T0)
    matrix = flow.vector_field.flow(base, data if t is None else t)
    return MultivariateNormal(x.new_zeros(2), matrix @ matrix.T).log_prob(x)


def small_flow(dim=2, **arguments):
    """A flow with weights large enough to matter, in float64."""
    field = ConcatSquashField(dim, (8, 8)).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2.0)
    return CNF(field, (dim,), **{"solver": TorchdiffeqSolver(**TIGHT), **arguments})


@pytest.mark.parametrize("data_at", ENDS)
def test_both_ways_and_the_density_against_the_closed_form(data_at):
    flow = linear_flow(data_at)
    x = torch.randn(5, 2, dtype=torch.float64)
    base, data = (T0, T1) if data_at == "t1" else (T1, T0)
    assert (flow.base_time, flow.data_time) == (base, data)
    z, delta_log_p = flow(x)
    torch.testing.assert_close(z @ flow.vector_field.flow(base, data).T, x, atol=1e-7, rtol=0.0)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-7, rtol=0.0)
    normal = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(flow.log_prob(x), normal + delta_log_p)
    for t in (None, T0, 0.8, T1):
        expected = exact_log_prob(flow, x, t)
        torch.testing.assert_close(flow.log_prob(x, t), expected, atol=1e-7, rtol=0.0)
    other = linear_flow("t0" if data_at == "t1" else "t1")  # of the wrong sign
    assert (exact_log_prob(flow, x) - exact_log_prob(other, x)).abs().min() > 0.1
    for offset in (-0.4, 0.7):
        flow.horizon.perturb(FixedOffset(offset))
        expected = exact_log_prob(flow, x, end=T1 + offset)
        torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("data_at", ENDS)
def test_evaluation_at_another_end_is_a_flow_of_its_own(data_at):
    end = 1.1
    flow, x = linear_flow(data_at, eval_end_time=end), torch.randn(5, 2, dtype=torch.float64)
    tight = {"atol": 1e-7, "rtol": 0.0}
    torch.testing.assert_close(flow.log_prob(x), exact_log_prob(flow, x), **tight)
    flow.eval()
    assert end in (flow.base_time, flow.data_time)
    for t in (None, T0, 0.8, end):
        expected = exact_log_prob(flow, x, t, end=end)
        torch.testing.assert_close(flow.log_prob(x, t), expected, **tight)
    z, _ = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, **tight)
    t_eval = torch.tensor([flow.base_time, flow.data_time], dtype=torch.float64)
    states, log_p = flow.trajectories(z, t_eval)
    torch.testing.assert_close(states[-1], x, **tight)
    torch.testing.assert_close(log_p[-1], exact_log_prob(flow, x, end=end), **tight)
    flow.horizon.perturb(FixedOffset(0.25))
    torch.testing.assert_close(flow.log_prob(x), exact_log_prob(flow, x, end=T1 + 0.25), **tight)


@pytest.mark.parametrize("data_at", ENDS)
def test_gradients_of_parameters_and_end_time_against_the_closed_form(data_at):
    x = torch.randn(5, 2, dtype=torch.float64)
    reference = linear_flow(data_at)
    end = torch.tensor(T1, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(
        exact_log_prob(reference, x, end=end).sum(), (reference.vector_field.matrix, end)
    )
    assert expected[1].abs() > 0.1
    for gradient in ("autograd", "adjoint"):
        solver = TorchdiffeqSolver(gradient=gradient, **TIGHT)
        flow = linear_flow(data_at, solver=solver, learn_t1=True).double()
        flow.log_prob(x).sum().backward()
        found = (flow.vector_field.matrix.grad, flow.horizon.learned_t1.grad)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("field", [None, MLPField(2, (8,)).double()], ids=["own", "mlp"])
def test_log_prob_is_the_log_determinant_of_the_flow(field):
    flow = small_flow() if field is None else CNF(field, (2,), TorchdiffeqSolver(**TIGHT))
    x = torch.randn(3, 2, dtype=torch.float64)
    _, delta_log_p = flow(x)
    for point, delta in zip(x, delta_log_p, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: flow(p[None])[0][0], point)
        torch.testing.assert_close(delta, jacobian.det().abs().log(), atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("data_at", ENDS)
def test_density_integrates_to_one(data_at):
    flow = small_flow(1, solver=TorchdiffeqSolver(rtol=1e-7, atol=1e-7), data_at=data_at)
    x = torch.linspace(-20.0, 20.0, 1001, dtype=torch.float64)[:, None]
    for t in (None, 0.3):
        density = flow.log_prob(x, t).exp()
        assert float(density.sum().detach() * 40.0 / 1000) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("data_at", ENDS)
def test_trajectories_end_at_the_data_with_its_density(data_at):
    flow = small_flow(data_at=data_at)
    z = torch.randn(6, 2, dtype=torch.float64)
    times = torch.linspace(flow.base_time, flow.data_time, 4, dtype=torch.float64)
    states, log_p = flow.trajectories(z, times)
    assert states.shape == (4, 6, 2)
    assert torch.equal(states[0], z)
    torch.testing.assert_close(states[-1], flow.inverse(z), atol=1e-7, rtol=0.0)
    for state, t, found in zip(states, times, log_p, strict=True):
        torch.testing.assert_close(found, flow.log_prob(state, float(t)), atol=1e-7, rtol=0.0)


def test_trajectories_from_a_time_that_float32_rounds():
    flow = CNF(ConcatSquashField(2, (8,)), (2,), t_span=(0.1, 1.0))
    states, log_p = flow.trajectories(torch.zeros(3, 2), torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(states[-1], flow.inverse(torch.zeros(3, 2)))
    assert log_p.shape == (2, 3)
    with pytest.raises(ValueError, match=r"start where the base sits, at 0\.1, but got 1\."):
        flow.trajectories(torch.zeros(3, 2), torch.tensor([1.0, 0.1]))


def test_events_of_several_axes():
    class Shrink(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

    flow = CNF(Shrink(), (2, 1, 2), TorchdiffeqSolver(**TIGHT))
    x = torch.randn(3, 2, 1, 2, dtype=torch.float64)
    z, delta_log_p = flow(x)
    torch.testing.assert_close(z, math.e * x, atol=1e-7, rtol=0.0)
    torch.testing.assert_close(delta_log_p, torch.full((3,), 4.0).double(), atol=1e-7, rtol=0.0)
    assert flow.log_prob(x).shape == (3,)


def test_sample_is_the_inverse_of_normal_noise():
    flow = small_flow()
    before = torch.get_rng_state()
    sample = flow.sample(5, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(sample, flow.inverse(z))
    assert (flow.sample(2) != flow.sample(2)).all()  # without a generator the global stream


@pytest.mark.parametrize("data_at", ENDS)
def test_an_end_time_for_each_sample(data_at):
    flow = linear_flow(data_at)
    x = torch.randn(4, 2, dtype=torch.float64)
    draw = EndTimeDraw(b=0.4, scope="sample", key=5)
    flow.horizon.perturb(draw)
    found = flow.log_prob(x)
    offsets = draw.offsets(torch.tensor([T1 - T0], dtype=torch.float64), 4, clip=False)
    assert len(offsets.unique()) == 4
    for i in range(4):
        expected = exact_log_prob(flow, x[i], end=T1 + offsets[i, 0])
        torch.testing.assert_close(found[i], expected, atol=1e-7, rtol=0.0)


def test_wrong_shapes_raise():
    flow = CNF(ConcatSquashField(2, (4,)), (2,))
    message = "Expected (base )?points of shape " + re.escape("(B, 2), but got (3, 1).")
    calls = [
        flow,
        flow.log_prob,
        flow.inverse,
        lambda x: flow.trajectories(x, torch.tensor([0.0, 1.0])),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_at": "t2"}, r"Expected `data_at` to be one of \['t0', 't1'\], but got 't2'"),
        ({"trace_estimator": "exakt"}, r"`trace_estimator` .*'exakt'\. Did you mean 'exact'"),
        ({"noise": "gausian"}, r"`noise` to be one of .*'gausian'\. Did you mean 'gaussian'"),
        ({"t_span": (0.0, 0.5, 1.0)}, r"Expected `t_span` = \(t0, t1\), but got \(0.0, 0.5, 1.0"),
        ({"t_span": (1.0, 1.0)}, "Expected finite t0 != t1, but got t0 = 1.0, t1 = 1.0"),
        ({"t_span": (0.0, math.inf)}, "Expected finite t0 != t1, but got t0 = 0.0, t1 = inf"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNF(ConcatSquashField(2, (4,)), (2,), **arguments)
