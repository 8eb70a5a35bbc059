import re
from functools import partial

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from steer_lightning.horizon.end_time import EndTimeDraw, FixedOffset
from steer_lightning.nn import CNF, ConcatSquashField, MLPField
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.models import lively
from tests.helpers.problems import TimedLinearField, times

T0, T1 = 0.5, 1.5
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
assert_near = partial(torch.testing.assert_close, atol=1e-7, rtol=0.0)
both_ends = pytest.mark.parametrize("data_at", ["t0", "t1"])


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
    field = lively(ConcatSquashField(dim, (8, 8)).double())
    return CNF(field, (dim,), **{"solver": TorchdiffeqSolver(**TIGHT), **arguments})


@both_ends
@pytest.mark.parametrize("end", [T1, 1.1])
def test_both_ways_and_the_density_against_the_closed_form(data_at, end):
    flow, x = linear_flow(data_at, eval_end_time=end), torch.randn(5, 2, dtype=torch.float64)
    assert_near(flow.log_prob(x), exact_log_prob(flow, x))
    for offset in (-0.4, 0.7):
        flow.horizon.perturb(FixedOffset(offset))
        assert_near(flow.log_prob(x), exact_log_prob(flow, x, end=T1 + offset))
    flow.horizon.reset()
    flow.eval()  # a flow of its own, if it ends elsewhere
    base, data = (T0, end) if data_at == "t1" else (end, T0)
    assert (flow.base_time, flow.data_time) == (base, data)
    z, delta_log_p = flow(x)
    assert_near(z @ flow.vector_field.flow(base, data).T, x)
    assert_near(flow.inverse(z), x)
    assert_near(flow.log_prob(x), Normal(0.0, 1.0).log_prob(z).sum(1) + delta_log_p)
    for t in (None, T0, 0.8, end):
        assert_near(flow.log_prob(x, t), exact_log_prob(flow, x, t, end=end))
    ts = torch.linspace(base, data, 4, dtype=torch.float64)
    states, log_p = flow.trajectories(z, ts)
    assert torch.equal(states[0], z)
    assert_near(states[-1], x)
    for t, state, found in zip(ts, states, log_p, strict=True):
        assert_near(found, exact_log_prob(flow, state, float(t), end=end))
    other = linear_flow("t0" if data_at == "t1" else "t1")  # of the wrong sign
    assert (exact_log_prob(flow, x) - exact_log_prob(other, x)).abs().min() > 0.1
    flow.horizon.perturb(FixedOffset(0.25))
    assert_near(flow.log_prob(x), exact_log_prob(flow, x, end=T1 + 0.25))


@both_ends
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


@both_ends
def test_regularisers_are_integrals_over_a_length_whichever_way_a_learned_end_lies(data_at):
    x, found = torch.randn(5, 2, dtype=torch.float64), []
    for learned, t1 in ((False, -0.5), (True, T1)):
        span, own = {"t_span": (T0, t1), "data_at": data_at}, {"learn_t1": learned}
        flow = CNF(TimedLinearField(), (2,), TorchdiffeqSolver(**TIGHT), **span, **own).double()
        if learned:
            torch.nn.init.constant_(flow.horizon.learned_t1, -0.5)
        found.append(flow.transport(x, regularize=True)[2:])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)
    assert bool((found[0][0] > 0.0).all() & (found[0][1] > 0.0).all())


@both_ends
@pytest.mark.parametrize("field", [None, MLPField(2, (8,)).double()], ids=["own", "mlp"])
def test_log_prob_is_the_log_determinant_of_the_flow(field, data_at):
    settings = {"solver": TorchdiffeqSolver(**TIGHT), "data_at": data_at}
    flow = small_flow(**settings) if field is None else CNF(field, (2,), **settings)
    x = torch.randn(3, 2, dtype=torch.float64)
    _, delta_log_p = flow(x)
    for point, delta in zip(x, delta_log_p, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: flow(p[None])[0][0], point)
        assert_near(delta, jacobian.det().abs().log())


def test_trajectories_from_a_time_that_float32_rounds():
    flow = CNF(ConcatSquashField(2, (8,)), (2,), t_span=(0.1, 1.0))
    states, log_p = flow.trajectories(torch.zeros(3, 2), torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(states[-1], flow.inverse(torch.zeros(3, 2)))
    assert log_p.shape == (2, 3)
    with pytest.raises(ValueError, match=r"start where the base sits, at 0\.1, but got 1\."):
        flow.trajectories(torch.zeros(3, 2), torch.tensor([1.0, 0.1]))


def test_sample_is_the_inverse_of_normal_noise():
    flow = small_flow()
    before = torch.get_rng_state()
    sample = flow.sample(5, torch.Generator().manual_seed(3), temperature=0.7)
    assert torch.equal(torch.get_rng_state(), before)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(sample, flow.inverse(0.7 * z))
    assert (flow.sample(2) != flow.sample(2)).all()  # without a generator the global stream


@both_ends
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
        assert_near(found[i], expected)


def test_wrong_shapes_raise():
    flow = CNF(ConcatSquashField(2, (4,)), (2,))
    message = "Expected (base )?points of shape " + re.escape("(B, 2), but got (3, 1).")
    for call in (flow, flow.log_prob, flow.inverse, lambda x: flow.trajectories(x, times(0, 1))):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_at": "t2"}, r"Expected `data_at` to be one of \['t0', 't1'\], but got 't2'"),
        ({"trace_estimator": "exakt"}, r"`trace_estimator` .*'exakt'\. Did you mean 'exact'"),
        ({"noise": "gausian"}, r"`noise` to be one of .*'gausian'\. Did you mean 'gaussian'"),
        ({"t_span": (0.0, 0.5, 1.0)}, r"Expected `t_span` = \(t0, t1\), but got \(0.0, 0.5, 1.0"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNF(ConcatSquashField(2, (4,)), (2,), **arguments)
