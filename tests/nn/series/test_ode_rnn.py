"""The unroll of a batch, against an unroll interval by interval."""

import math

import pytest
import torch
from torch import nn

from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import ODERNN, MLPField, Posterior, Unroll
from steer_lightning.solvers import SolveStats
from tests.helpers.models import RecordingField, seeded

N_FEATURES, N_STATES = 2, 3
GRID = torch.tensor([0.1, 0.13, 0.5, 0.9, 1.4], dtype=torch.float64)
LENGTHS = torch.tensor([5, 3, 1, 4])
fields = pytest.mark.parametrize("time_dependent", [False, True])
directions = pytest.mark.parametrize("reverse", [False, True])
draws = pytest.mark.parametrize(
    "draw", [None, EndTimeDraw("auto", key=1), EndTimeDraw(0.1, key=2)]
)


def make(time_dependent=False, reverse=False, max_step=0.1):
    def build():
        field = MLPField(N_STATES, (8,), time_dependent=time_dependent)
        return ODERNN(RecordingField(field), N_FEATURES, N_STATES, 6, max_step, reverse)

    rnn = seeded(build).double()
    for name, parameter in rnn.gru.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, 0.1)
    return rnn


def random_values(n_samples, n_times):
    generator = torch.Generator().manual_seed(1)
    shape = (n_samples, n_times, N_FEATURES)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(shape, generator=generator) < 0.6).double()
    return values, mask


def shared_grid(n_samples=3):
    """Samples that were looked at together, though not all of them seen."""
    values, mask = random_values(n_samples, len(GRID))
    mask[:, [0, -1]] = 1.0
    mask[0, 2] = 0.0  # this one was not seen
    mask[:, 3] = 0.0  # this time nobody was
    return GRID.expand(n_samples, -1), values, mask, torch.full((n_samples,), len(GRID))


def own_grids():
    """Samples of 5, 3, 1 and 4 times of their own, padded by the last one."""
    generator = torch.Generator().manual_seed(0)
    gaps = torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.01
    padding = torch.arange(5) >= LENGTHS[:, None]
    values, mask = random_values(4, 5)
    mask[:, 0] = 1.0
    mask[padding] = 0.0
    return gaps.masked_fill(padding, 0.0).cumsum(1), values, mask, LENGTHS


def gru_step(gru, mean, std, x):
    """Rubanova et al., the update written out."""
    joint = torch.cat([mean, std, x], -1)
    z, r = torch.sigmoid(gru.update_gate(joint)), torch.sigmoid(gru.reset_gate(joint))
    new = gru.new_state(torch.cat([r * mean, r * std, x], -1))
    new_mean, new_std = new[..., :N_STATES], new[..., N_STATES:].abs()
    return (1 - z) * new_mean + z * mean, (1 - z) * new_std + z * std


def interval_by_interval(rnn, grid, values, mask, rates=None):
    """All samples along one grid, shape ``(K,)``; ``rates`` of intervals in unrolling order."""
    order = list(range(len(grid)))
    if rnn.reverse:
        order.reverse()
    mean = std = torch.zeros(len(values), N_STATES, dtype=torch.float64)
    arrival = torch.zeros(*values.shape[:2], N_STATES, dtype=torch.float64)
    departure, n_steps = arrival.clone(), 1
    for i, k in enumerate(order):
        if i:
            start, gap = grid[order[i - 1]], grid[k] - grid[order[i - 1]]
            n = max(1, math.ceil(abs(gap) / (rnn.max_step * (grid[-1] - grid[0])) - 1e-9))
            dt = gap / n if rates is None else gap * rates[..., i - 1] / n
            for j in range(n):
                slope = rnn.vector_field.vector_field(start + j * dt, mean)
                mean = mean + dt.reshape(-1, 1) * slope
            n_steps += n
        arrival[:, k] = mean
        seen = mask[:, k].sum(1, keepdim=True) > 0
        x = torch.cat([values[:, k] * mask[:, k], mask[:, k]], 1)
        new_mean, new_std = gru_step(rnn.gru, mean, std, x)
        mean, std = torch.where(seen, new_mean, mean), torch.where(seen, new_std, std)
        departure[:, k] = mean
    return Unroll(Posterior(mean, std), arrival, departure), n_steps


def steered(rnn, draw):
    if draw is not None:
        rnn.horizon.perturb(draw)
    return rnn


@fields
@directions
@draws
def test_samples_of_one_grid_unroll_interval_by_interval(time_dependent, reverse, draw):
    rnn, (series, *rest) = steered(make(time_dependent, reverse), draw), shared_grid()
    unroll_grid, rates = GRID.flip(0) if reverse else GRID, None
    if draw is not None:
        ends = rnn.horizon.end_times(unroll_grid)
        rates = (ends - unroll_grid[:-1]) / unroll_grid.diff()
        b = 0.999 * unroll_grid.diff().abs() if draw.b == "auto" else torch.tensor(draw.b)
        assert bool(((ends - unroll_grid[1:]).abs() <= b).all())
    unroll = rnn(series, *rest)
    expected, n_steps = interval_by_interval(rnn, GRID, *rest[:2], rates)
    torch.testing.assert_close(unroll, expected, rtol=1e-12, atol=1e-13)
    assert rnn.stats == SolveStats(nfe_forward=n_steps, accepted=n_steps)
    if draw is not None:
        rnn.horizon.reset()
        assert not torch.allclose(rnn(series, *rest).final.mean, unroll.final.mean, rtol=1e-6)


@fields
@directions
def test_samples_of_one_grid_with_end_times_of_their_own(time_dependent, reverse):
    rnn, (series, *rest) = make(time_dependent, reverse), shared_grid()
    rnn.horizon.perturb(EndTimeDraw("auto", key=3, scope="sample"))
    rates = rnn.horizon.rates(series, rest[-1], reverse)
    assert len(rates.unique()) == rates.numel()
    expected, _ = interval_by_interval(rnn, GRID, *rest[:2], rates)
    torch.testing.assert_close(rnn(series, *rest), expected, rtol=1e-12, atol=1e-13)


@fields
@directions
@pytest.mark.parametrize("scope", [None, "batch", "sample"])
def test_samples_of_other_grids_unroll_their_own_intervals(time_dependent, reverse, scope):
    rnn, (series, values, mask, lengths) = make(time_dependent, reverse), own_grids()
    rates = None
    if scope is not None:
        rnn.horizon.perturb(EndTimeDraw("auto", key=3, scope=scope))
        rates = rnn.horizon.rates(series, lengths, reverse)
    unroll = rnn(series, values, mask, lengths)
    longest = 0
    for b, n in enumerate(lengths):
        expected, n_steps = interval_by_interval(
            rnn,
            series[b, :n],
            values[b : b + 1, :n],
            mask[b : b + 1, :n],
            None if rates is None else rates[b, : n - 1],
        )
        for part, single in zip(unroll.final, expected.final, strict=True):
            torch.testing.assert_close(part[b : b + 1], single, rtol=1e-12, atol=1e-13)
        for way, single in zip(unroll[1:], expected[1:], strict=True):
            torch.testing.assert_close(way[b, :n], single[0], rtol=1e-12, atol=1e-13)
            assert not bool(way[b, n:].any())
        longest = max(longest, n_steps)
    assert rnn.stats.nfe_forward == longest


def test_the_field_is_told_the_actual_time():
    rnn, batch = make(time_dependent=True, max_step=1.0), own_grids()
    series = batch[0]
    rnn.horizon.perturb(EndTimeDraw("auto", key=3))
    rnn(*batch)
    told = torch.stack(rnn.vector_field.times, dim=1)
    assert told.shape == (4, 5)
    for b, n in enumerate(LENGTHS):  # no interval is cut, so that each step starts at a time
        assert torch.equal(told[b, 1:n], series[b, : n - 1])
    rnn, series = make(time_dependent=True, max_step=0.5), torch.tensor([[0.0, 1.0, 3.0]]).double()
    rnn.horizon.perturb(EndTimeDraw("auto", key=3))
    rates = rnn.horizon.rates(series, torch.tensor([3]))[0]
    rnn(series, torch.ones(1, 3, 2).double(), torch.ones(1, 3, 2).double(), torch.tensor([3]))
    told = torch.cat(rnn.vector_field.times)
    torch.testing.assert_close(
        told[1:], torch.stack([0 * rates[0], 1 + 0 * rates[0], 1 + rates[1]])
    )


def test_gates_are_asked_only_where_someone_arrives_at_an_observation():
    rnn, (series, *rest) = make(), shared_grid()
    asked = []
    rnn.gru.update_gate[1].register_forward_hook(lambda *args: asked.append(args))
    rnn(series, *rest)
    assert len(asked) == 4  # of five times, one without an observation
    assert rnn.stats.nfe_forward > 10


def test_autocast_lowers_the_precision_of_the_networks_alone():
    rnn, batch = make().float(), own_grids()
    batch = [part.float() for part in batch[:3]]
    with torch.autocast("cpu", torch.bfloat16):
        posterior, arrival, *_ = rnn(*batch, LENGTHS)
    assert posterior.mean.dtype == posterior.std.dtype == arrival.dtype == torch.float32
    torch.testing.assert_close(
        posterior.mean, rnn(*batch, LENGTHS).final.mean, rtol=0.1, atol=0.05
    )


@pytest.mark.parametrize("max_step", [0.0, 1.5, -0.1, float("nan")])
def test_a_step_that_is_no_fraction_is_refused(max_step):
    with pytest.raises(ValueError, match=rf"`max_step`, .* in \(0, 1\], but got {max_step}"):
        ODERNN(MLPField(3), 2, 3, max_step=max_step)
