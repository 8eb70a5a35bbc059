import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steer_lightning.horizon.end_time import (
    DISTRIBUTIONS,
    EndTimeDraw,
    FixedOffset,
    end_time_offset,
)

half_widths = st.floats(1e-6, 1e6)
signed_gaps = st.tuples(st.floats(1e-3, 1e3), st.sampled_from([-1.0, 1.0])).map(math.prod)


def gaps(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(b=half_widths, u=st.floats(0.0, 1.0, exclude_max=True))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_offsets_stay_within_b(distribution, b, u):
    offset = end_time_offset(
        torch.tensor([u], dtype=torch.float64), torch.tensor(b, dtype=torch.float64), distribution
    )
    assert float(offset.abs()) <= b


@pytest.mark.parametrize(
    ("distribution", "law"),
    [("uniform", stats.uniform(-0.5, 1.0)), ("normal", stats.truncnorm(-2.0, 2.0, scale=0.25))],
)
def test_offsets_are_the_quantiles_of_scipys_law(distribution, law):
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.cat([gaps(0.0, 0.5, 1.0 - 2.0**-53), u])  # the ends of the unit interval too
    offsets = end_time_offset(u, torch.tensor(0.5, dtype=torch.float64), distribution)
    torch.testing.assert_close(offsets, torch.from_numpy(law.ppf(u.numpy())))


@settings(deadline=None, max_examples=50)
@given(gap=signed_gaps, epsilon=st.floats(1e-6, 0.9), key=st.integers(0, 2**63 - 1))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_without_b_the_end_time_keeps_a_fraction_of_the_gap_from_t0(
    distribution, gap, epsilon, key
):
    draw = EndTimeDraw("auto", epsilon=epsilon, distribution=distribution, key=key)
    offset = float(draw.offsets(gaps(gap), None, clip=True))
    assert abs(offset) <= (1 - epsilon) * abs(gap)
    assert (gap + offset) * gap > 0  # T stays on t1's side of t0


@settings(deadline=None, max_examples=30)
@given(b=half_widths, key=st.integers(0, 2**63 - 1))
def test_clip_cuts_b_to_each_gap(b, key):
    lengths = gaps(0.5, -2.0, 8.0)
    draw = EndTimeDraw(b, epsilon=0.1, key=key)
    expected = torch.minimum(gaps(b, b, b), 0.9 * lengths.abs())
    torch.testing.assert_close(draw.half_widths(lengths, clip=True), expected)
    assert bool((draw.offsets(lengths, None, clip=True).abs() <= expected).all())


def test_one_offset_for_each_sample_and_interval():
    draw = EndTimeDraw(0.5, scope="sample", key=1)
    assert draw.per_sample
    offsets = draw.offsets(gaps(1.0, 2.0), 4, clip=False)
    assert offsets.shape == (4, 2)
    assert len(offsets.unique()) == 8
    assert len(EndTimeDraw(0.5).offsets(gaps(1.0, 1.0), None, clip=False).unique()) == 2
    assert EndTimeDraw(0.0).offsets(gaps(1.0, 2.0), None, clip=False) is None


def test_the_key_alone_decides_the_draw_and_the_global_stream_is_not_touched():
    def drawn(key):
        return EndTimeDraw(0.5, key=key).offsets(gaps(1.0), None, clip=False)

    before, first = torch.get_rng_state(), drawn(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(drawn(7), first)
    assert not torch.equal(drawn(8), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("b", [1.0, 1.5])
@pytest.mark.parametrize("gap", [1.0, -1.0])
def test_b_that_reaches_t0_is_refused(b, gap):
    with pytest.raises(ValueError, match=r"0 <= b < \|t1 - t0\| = 1.*but got b = 1.*b='auto'"):
        EndTimeDraw(b).offsets(gaps(gap), None, clip=False)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"b": -0.1}, r"Expected `b` to be 'auto' or finite and >= 0, but got -0\.1"),
        ({"b": math.nan}, "Expected `b` .* but got nan"),
        ({"b": math.inf}, "Expected `b` .* but got inf"),
        ({"b": 0.5, "epsilon": 0.0}, r"`epsilon`.*in \(0, 1\], but got 0"),
        ({"b": 0.5, "epsilon": 1.1}, r"`epsilon`.*in \(0, 1\], but got 1.1"),
        ({"b": 0.5, "epsilon": math.nan}, "`epsilon`.*but got nan"),
        ({"b": 0.5, "distribution": "unifrom"}, "`distribution`.*Did you mean 'uniform'"),
        ({"b": 0.5, "scope": "ranks"}, "`scope`.*Did you mean 'rank'"),
    ],
)
def test_values_outside_their_range_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        EndTimeDraw(**settings_)


@pytest.mark.parametrize("gap", [2.0, -2.0])
def test_a_fixed_offset_moves_every_end_by_the_same(gap):
    draw = FixedOffset(0.25)
    assert not draw.per_sample
    assert torch.equal(draw.offsets(gaps(gap, gap), None, clip=False), gaps(0.25, 0.25))
    assert torch.equal(FixedOffset(0.0).offsets(gaps(gap), None, clip=False), gaps(0.0))


@pytest.mark.parametrize(("gap", "offset"), [(1.0, -1.0), (1.0, -1.5), (-1.0, 1.0)])
def test_a_fixed_offset_that_reaches_t0_is_refused(gap, offset):
    with pytest.raises(ValueError, match=r"apart from t0, \|t1 - t0\| = 1, but got"):
        FixedOffset(offset).offsets(gaps(gap), None, clip=False)
