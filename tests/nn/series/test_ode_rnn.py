"""The unroll of a batch, against an unroll interval by interval."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import ODERNN, MLPField, Posterior, Unroll
from steer_lightning.solvers import SolveStats
from tests.helpers.models import RecordingField, lively

N_FEATURES, N_STATES = 2, 3
GRID = torch.tensor([0.1, 0.13, 0.5, 0.9, 1.4], dtype=torch.float64)
LENGTHS = torch.tensor([5, 3, 1, 4])
fields = pytest.mark.parametrize("time_dependent", [False, True])
directions = pytest.mark.parametrize("reverse", [False, True])
scopes = pytest.mark.parametrize("scope", [None, "batch", "sample"])


def make(time_dependent=False, reverse=False, max_step=0.1, hidden=(8,), wrap=RecordingField):
    field = wrap(MLPField(N_STATES, hidden, time_dependent=time_dependent))
    return lively(ODERNN(field, N_FEATURES, N_STATES, 6, max_step, reverse)).double()


def random_values(n_samples, n_times):
    generator = torch.Generator().manual_seed(1)
    shape = (n_samples, n_times, N_FEATURES)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(shape, generator=generator) < 0.6).double()
    return values, mask


def shared_grid():
    """Samples that were looked at together, though not all of them seen."""
    values, mask = random_values(3, len(GRID))
    mask[:, [0, -1]] = 1.0
    mask[0, 2] = 0.0  # this one was not seen
    mask[:, 3] = 0.0  # this time nobody was
    return GRID.expand(3, -1), values, mask, torch.full((3,), len(GRID))


def own_grids():
    """Samples of 5, 3, 1 and 4 times of their own, padded by the last one."""
    generator = torch.Generator().manual_seed(0)
    gaps = torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.01
    padding = torch.arange(5) >= LENGTHS[:, None]
    values, mask = random_values(4, 5)
    mask[:, 0] = 1.0
    mask[padding] = 0.0
    return gaps.masked_fill(padding, 0.0).cumsum(1), values, mask, LENGTHS


batches = pytest.mark.parametrize("batch", [own_grids, shared_grid])


def gru_step(gru, mean, std, x):
    """Rubanova et al., the update written out."""
    joint = torch.cat([mean, std, x], -1)
    z, r = torch.sigmoid(gru.update_gate(joint)), torch.sigmoid(gru.reset_gate(joint))
    new = gru.new_state(torch.cat([r * mean, r * std, x], -1))
    new_mean, new_std = new[..., :N_STATES], new[..., N_STATES:].abs()
    return (1 - z) * new_mean + z * mean, (1 - z) * new_std + z * std


def interval_by_interval(rnn, grid, values, mask, rates=None):
    """One sample; ``rates`` are of its intervals as it unrolls. With the number of its steps."""
    order = range(len(grid))[::-1] if rnn.reverse else range(len(grid))
    mean = std = torch.zeros(1, N_STATES, dtype=torch.float64)
    arrival = torch.zeros(len(grid), N_STATES, dtype=torch.float64)
    departure, n_steps = arrival.clone(), 1
    for i, k in enumerate(order):
        if i:
            start, gap = grid[order[i - 1]], grid[k] - grid[order[i - 1]]
            n = max(1, math.ceil(abs(gap) / (rnn.max_step * (grid[-1] - grid[0])) - 1e-9))
            dt = gap / n if rates is None else gap * rates[i - 1] / n
            for j in range(n):
                mean = mean + dt * rnn.vector_field.vector_field(start + j * dt, mean)
            n_steps += n
        arrival[k] = mean
        if mask[k].any():
            x = torch.cat([values[k] * mask[k], mask[k]])[None]
            mean, std = gru_step(rnn.gru, mean, std, x)
        departure[k] = mean
    return Unroll(Posterior(mean, std), arrival, departure), n_steps


@fields
@directions
@scopes
@batches
def test_every_sample_unrolls_interval_by_interval(time_dependent, reverse, scope, batch):
    rnn, (series, values, mask, lengths) = make(time_dependent, reverse), batch()
    rates, longest = None, 0
    if scope is not None:
        rnn.horizon.perturb(EndTimeDraw("auto", key=3, scope=scope))
        rates = rnn.horizon.rates(series, lengths, reverse)
    unroll = rnn(series, values, mask, lengths)
    for b, n in enumerate(lengths):
        stretch = None if rates is None else rates[b, : n - 1]
        sample = (part[b, :n] for part in (series, values, mask))
        expected, n_steps = interval_by_interval(rnn, *sample, stretch)
        final = Posterior(*(part[b : b + 1] for part in unroll.final))
        found = Unroll(final, *(way[b, :n] for way in unroll[1:]))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        assert not any(bool(way[b, n:].any()) for way in unroll[1:])
        longest = max(longest, n_steps)
    assert rnn.stats == SolveStats(nfe_forward=longest, accepted=longest)


def test_gates_are_asked_only_where_someone_arrives_at_an_observation():
    rnn, (series, *rest) = make(), shared_grid()
    asked = []
    rnn.gru.update_gate[1].register_forward_hook(lambda *args: asked.append(args))
    rnn(series, *rest)
    assert len(asked) == 4  # of five times, one without an observation
    assert rnn.stats.nfe_forward > 10


def test_a_field_is_told_the_time_in_the_precision_of_the_state():
    rnn, (series, *rest) = make(time_dependent=True).float(), own_grids()
    rnn(series, *(part.float() for part in rest[:2]), LENGTHS)
    assert {t.dtype for t in rnn.vector_field.times} == {torch.float32}


def test_autocast_lowers_the_precision_of_the_networks_alone():
    rnn, batch = make().float(), [part.float() for part in own_grids()[:3]]
    with torch.autocast("cpu", torch.bfloat16):
        unroll = rnn(*batch, LENGTHS)
    assert {part.dtype for part in (*unroll.final, *unroll[1:])} == {torch.float32}
    expected = rnn(*batch, LENGTHS).final.mean
    torch.testing.assert_close(unroll.final.mean, expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("wrap", [lambda field: field, RecordingField], ids=["fused", "plain"])
def test_what_a_checkpoint_repeats_counts_as_backward(wrap):
    rnn, (series, values, *rest) = make(wrap=wrap), own_grids()
    whole = checkpoint(lambda v: rnn(series, v, *rest).final.mean, values.requires_grad_(),
                       use_reentrant=False)  # fmt: skip
    n = rnn.stats.nfe_forward
    whole.sum().backward()
    assert rnn.stats == SolveStats(n, n, accepted=n, accepted_backward=n)


@pytest.mark.parametrize("max_step", [0.0, 1.5, -0.1, float("nan")])
def test_a_step_that_is_no_fraction_is_refused(max_step):
    with pytest.raises(ValueError, match=rf"`max_step`, .* in \(0, 1\], but got {max_step}"):
        ODERNN(MLPField(3), 2, 3, max_step=max_step)


def test_a_single_time_may_be_zero():
    rnn = ODERNN(MLPField(4, (8,), time_dependent=False), n_features=1, n_states=4)
    found = [
        rnn(torch.full((1, 1), t), torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([1]))
        for t in (0.7, 0.0)
    ]
    assert torch.equal(found[0].final.mean, found[1].final.mean)
