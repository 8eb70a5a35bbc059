"""Models of other libraries that cannot be attached: an error, and no harm afterwards."""

import re

import pytest
import torch
import zuko
from torch import nn

from steer_lightning import steer


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("transform", TypeError, "called as f(t, y, ...) with a tensor t, but got no time. Name"),
        ("transform.ode", ValueError, "but got a tensor of shape (4, 8). Name the module"),
    ],
)
def test_zuko_flow_is_refused_and_left_as_it_was(path, error, message):
    torch.manual_seed(0)
    flow, x = zuko.flows.CNF(2), torch.randn(4, 2)
    before = flow().log_prob(x)
    with (
        pytest.raises(error, match=re.escape(message)),
        steer(flow, b=0.5, step=0, vector_fields=[path]),
    ):
        flow().log_prob(x)
    assert torch.equal(flow().log_prob(x), before)


class PlainTime(nn.Module):
    def forward(self, t, y):
        return t * y


def test_time_that_is_no_tensor_is_refused():
    model, y = PlainTime(), torch.ones(2)
    with (
        pytest.raises(TypeError, match="with a tensor t, but got a time of type float"),
        steer(model, b=0.5, step=0, vector_fields=[""]),
    ):
        model(0.0, y)
    assert torch.equal(model(2.0, y), 2.0 * y)
    assert torch.equal(model(y=y, t=2.0), 2.0 * y)


def test_one_time_for_each_sample_at_one_end_is_a_time():
    model, y = PlainTime(), torch.ones(3)
    with steer(model, b=0.5, step=0, seed=0, vector_fields=[""], t0=0.0, t1=1.0) as end_times:
        (end,) = end_times.values()
        torch.testing.assert_close(model(torch.ones(3), y), torch.full((3,), end * end))
