"""Plans, against ones written by hand."""

import math

import pytest
import torch

from steer_lightning.nn.series.unroll import plan_unroll, unroll_order
from tests.helpers.problems import times

LENGTHS = torch.tensor([4, 2, 1])
TIMES = torch.stack([times(0.0, 1.0, 1.5, 3.5), times(2.0, 5.0, 5.0, 5.0), times(*[7.0] * 4)])
RATES = torch.stack([times(0.5, 1.5, 2.0), times(0.25, 1.0, 1.0), times(1.0, 1.0, 1.0)])


def random_series():
    """Times of five samples of 1 to 9 times, padded by the last one."""
    lengths = torch.linspace(1, 9, 5).long()
    gaps = torch.rand(5, 9, dtype=torch.float64).square() + 1e-3
    gaps[torch.arange(9) >= lengths[:, None]] = 0.0
    return gaps.cumsum(1), lengths


def test_the_order_of_an_unroll_is_padded_by_the_last_one_met():
    assert unroll_order(LENGTHS, 4).tolist() == [[0, 1, 2, 3], [0, 1, 1, 1], [0] * 4]
    assert unroll_order(LENGTHS, 4, reverse=True).tolist() == [[3, 2, 1, 0], [1, 0, 0, 0], [0] * 4]


FORWARD = [[0, 1, 2, -1, 3], [0, -1, -1, 1, -1], [0, -1, -1, -1, -1]]
BACKWARD = [[3, -1, 2, 1, 0], [1, -1, -1, 0, -1], [0, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("rates", "reverse", "t", "dt"),
    [
        (
            None,
            False,
            [[0.0, 0.0, 1.0, 1.5, 2.5], [2.0, 2.0, 3.0, 4.0, 5.0], [7.0] * 5],
            [[0.0, 1.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 0.0], [0.0] * 5],
        ),
        (
            None,
            True,
            [[3.5, 3.5, 2.5, 1.5, 1.0], [5.0, 5.0, 4.0, 3.0, 2.0], [7.0] * 5],
            [[0.0, -1.0, -1.0, -0.5, -1.0], [0.0, -1.0, -1.0, -1.0, 0.0], [0.0] * 5],
        ),
        (  # the interval after a stretched one starts unperturbed
            RATES,
            False,
            [[0.0, 0.0, 1.0, 1.5, 3.5], [2.0, 2.0, 2.25, 2.5, 5.0], [7.0] * 5],
            [[0.0, 0.5, 0.75, 2.0, 2.0], [0.0, 0.25, 0.25, 0.25, 0.0], [0.0] * 5],
        ),
        (  # rates number the intervals as the unroll takes them
            RATES,
            True,
            [[3.5, 3.5, 3.0, 1.5, 1.0], [5.0, 5.0, 4.75, 4.5, 2.0], [7.0] * 5],
            [[0.0, -0.5, -0.5, -0.75, -2.0], [0.0, -0.25, -0.25, -0.25, 0.0], [0.0] * 5],
        ),
    ],
)
def test_plans_by_hand(rates, reverse, t, dt):
    plan = plan_unroll(TIMES, LENGTHS, 1.0, rates, reverse)
    torch.testing.assert_close(plan.t, torch.tensor(t).double(), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(plan.dt, torch.tensor(dt).double(), rtol=1e-14, atol=0.0)
    assert plan.arrived.tolist() == (BACKWARD if reverse else FORWARD)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("max_step", [0.03, 0.2, 10.0])
def test_steps_are_equal_as_few_as_allowed_and_add_up_to_the_gaps(reverse, max_step):
    series, lengths = random_series()
    for t, dt, arrived, grid, n in zip(
        *plan_unroll(series, lengths, max_step, reverse=reverse), series, lengths, strict=True
    ):
        order = torch.arange(n).flip(0) if reverse else torch.arange(n)
        met = (arrived >= 0).nonzero().flatten()
        assert torch.equal(arrived[met], order)
        assert dt[0] == met[0] == 0
        for i in range(1, n):
            steps = slice(met[i - 1] + 1, met[i] + 1)
            start, gap = grid[order[i - 1]], grid[order[i]] - grid[order[i - 1]]
            pieces = len(dt[steps])
            assert pieces == math.ceil(abs(gap) / max_step)
            torch.testing.assert_close(dt[steps], (gap / pieces).expand(pieces))
            torch.testing.assert_close(t[steps], start + torch.arange(pieces) * gap / pieces)
            torch.testing.assert_close(dt[steps].sum(), gap)
        assert not bool(dt[met[-1] + 1 :].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gap_of_whole_steps_to_rounding_takes_no_step_more(dtype):
    series = (torch.arange(40, dtype=dtype) / 20).expand(1, -1)
    assert plan_unroll(series, torch.tensor([40]), 0.05).dt.shape == (1, 40)
    assert plan_unroll(series, torch.tensor([40]), 0.0499).dt.shape == (1, 79)


@pytest.mark.parametrize("offset", [0.0, 2.0**20])
def test_times_far_from_zero_take_as_many_steps(offset):
    series = offset + torch.arange(4).float()[None] / 4
    assert plan_unroll(series, torch.tensor([4]), 0.02).dt.shape == (1, 1 + 3 * 13)


def test_the_steps_have_a_gradient_in_the_times():
    series = TIMES.clone().requires_grad_()
    plan_unroll(series, LENGTHS, 1.0, RATES).dt.sum().backward()
    assert series.grad.tolist() == [[-0.5, -1.0, -0.5, 2.0], [-0.25, 0.25, 0.0, 0.0], [0.0] * 4]
