from itertools import product

import pytest
import torch
from torch import nn

from steer_lightning.nn import ConvFlowField
from steer_lightning.nn.trace import NOISES, exact_divergence, jvp, trace_noise
from tests.helpers.models import lively
from tests.helpers.problems import jacobians


def test_a_fields_own_way_is_taken():
    class Own(nn.Module):
        def jvp(self, t, y, probe):
            return 2.0 * y, 2.0 * probe

    y = torch.ones(3, 2)
    assert torch.equal(jvp(Own(), torch.tensor(0.0), y, 3.0 * y)[1], 6.0 * y)
    assert torch.equal(exact_divergence(Own(), torch.tensor(0.0), y)[1], torch.full((3,), 4.0))


def test_an_exact_divergence_under_autocast_is_summed_in_the_precision_of_the_state():
    field, y = nn.Linear(64, 64), torch.ones(1, 64)
    with torch.no_grad():
        field.weight.copy_(torch.eye(64) * (1.0 + 2.0**-7))  # exact in bfloat16, their sum is not
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, divergence = exact_divergence(lambda t, y: field(y), torch.tensor(0.0), y)
    assert value.dtype == torch.bfloat16
    assert divergence.item() == 64.5


def test_the_mean_over_all_signs_is_the_trace():
    t, y = torch.tensor(0.3).double(), torch.linspace(-1.0, 1.0, 8).double().view(1, 2, 2, 2)
    field = lively(ConvFlowField(2, (3,)).double())
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    e = signs.view(-1, 2, 2, 2)
    _, tangent = jvp(field, t, y.expand_as(e), e)
    estimates = (e * tangent).flatten(1).sum(1)
    assert estimates.std() > 0.1
    torch.testing.assert_close(estimates.mean(), exact_divergence(field, t, y)[1][0])
    squared_norm = tangent.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(squared_norm, jacobians(field, t, y).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_like_the_state_and_white(noise, dtype):
    y = torch.full((20_000, 2, 2), 7.0, dtype=dtype)
    e = trace_noise(y, noise, torch.Generator().manual_seed(0))
    assert (e.shape, e.dtype, e.device) == (y.shape, y.dtype, y.device)
    flat = e.flatten(1).double()
    torch.testing.assert_close(flat.mean(0), torch.zeros(4).double(), atol=0.03, rtol=0.0)
    torch.testing.assert_close(flat.T @ flat / 20_000, torch.eye(4).double(), atol=0.05, rtol=0.0)
    if noise == "rademacher":
        assert bool((e.abs() == 1.0).all())
    else:
        assert float(flat.pow(4).mean()) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("noise", NOISES)
def test_a_generator_alone_decides_the_noise(noise):
    y = torch.zeros(3, 4)
    before = torch.get_rng_state()
    a, b, c = (trace_noise(y, noise, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    trace_noise(y, noise)
    assert not torch.equal(torch.get_rng_state(), before)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"Expected `noise` .*'radmacher'\. Did you mean 'rade"):
        trace_noise(torch.zeros(2, 3), "radmacher")
