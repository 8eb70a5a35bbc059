import math

import numpy as np
import pytest
from scipy import stats

from reproduce.statistics import paired, reached, summary
from tests.reproduce.records import record

A = dict(enumerate([1.0, 2.5, 0.5, 1.75]))
B = dict(enumerate([1.5, 2.75, 1.5, 2.5]))


def test_summary():
    found = summary([1.0, 2.0, 4.0])
    assert found == pytest.approx((7 / 3, np.std([1.0, 2.0, 4.0], ddof=1), 3))
    assert summary([3.0])[::2] == (3.0, 1)
    assert math.isnan(summary([3.0]).std)
    assert math.isnan(summary([]).mean)


def test_interval_is_that_of_scipys_paired_test():
    found = paired(A, B, "higher")
    expected = stats.ttest_rel([*B.values()], [*A.values()]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.625)
    assert found.n == 4


@pytest.mark.parametrize(
    ("better", "up", "down"), [("higher", "gain", "loss"), ("lower", "loss", "gain")]
)
def test_words(better, up, down):
    assert paired(A, B, better).verdict == up
    assert paired(B, A, better).verdict == down
    assert paired(A, A, better).verdict == "no difference"
    assert paired(A, {k: v + 1.0 for k, v in A.items()}, better).verdict == up


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_an_interval_around_zero_says(sign):
    differences = [0.5, -0.1, 0.2, 0.1]
    nothing, other = dict.fromkeys(range(4), 0.0), {k: sign * d for k, d in enumerate(differences)}
    found = paired(nothing, other, "higher")
    assert found.verdict == "not shown"
    half = stats.t.ppf(0.975, 3) * np.std(differences, ddof=1) / 2.0
    assert (found.shows, found.excludes) == pytest.approx((half, 0.175 + half))
    for matters, verdict in ((0.174 + half, "not shown"), (0.176 + half, "no difference")):
        assert paired(nothing, other, "lower", matters).verdict == verdict


def test_pairs_share_a_seed():
    found = paired({0: 1.0, 1: 2.0, 2: 5.0}, {1: 3.0, 2: 7.0, 9: 0.0}, "higher")
    assert (found.mean, found.n) == (1.5, 2)


def test_too_little_for_a_verdict():
    one = paired({0: 1.0}, {0: 2.0}, "higher")
    assert (one.mean, one.n, one.verdict) == (1.0, 1, "one seed: no verdict")
    assert math.isnan(one.low)
    assert paired({0: 1.0}, {1: 2.0}, "higher").verdict == "no pairs"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverged_is_no_evidence(bad):
    found = paired({0: 1.0, 1: 1.0}, {0: bad, 1: 5.0}, "higher")
    assert found.verdict == "not finite: no verdict"


def run(*values, seed=0, mode="max"):
    return record(seed, 0.5, values, mode=mode)


@pytest.mark.parametrize(
    ("baseline", "values", "step"),
    [
        ([0.1, 0.5, 0.5, 0.5], [0.1, 0.5, 0.5, 0.5], 2),  # equal is enough, and the first counts
        ([0.1, 0.5, 0.5, 0.5], [0.9, 0.4, 0.5, 0.6, 0.5], 3),  # one lucky check is not
        ([0.1, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.6, 0.6], None),
        ([0.1, 0.5, 0.5, 0.5], [0.4, 0.4, 0.9, 0.9], None),  # two checks are not three
        ([0.1, 0.5, 0.5, 0.5, 0.1], [0.5, 0.5, 0.5, 0.4], 1),  # nor does the last one decide,
        ([*[0.4] * 9, 0.9, 0.4], [0.3, 0.4, 0.4, 0.4], 2),  # nor a lucky one
        ([0.1, 0.5, 0.5, 0.5], [math.nan, 0.6, 0.6, 0.6], 2),
        ([0.1, 0.5, 0.5, 0.5], [0.6, 0.6, math.nan, 0.6], None),
        ([math.nan, 0.5, 0.5, 0.5], [0.6, 0.6, 0.6, 0.4], 1),
    ],
)
def test_the_check_from_which_on_a_level_is_held(baseline, values, step):
    found = reached([run(*baseline)], [run(*values)])[0]
    assert (found and found.step) == step
    errors = [[1.0 - v for v in run] for run in (baseline, values)]  # exact in no binary digit,
    rounded = [[round(v, 9) for v in run] for run in errors]
    found = reached([run(*rounded[0], mode="min")], [run(*rounded[1], mode="min")])[0]
    assert (found and found.step) == step


def test_a_level_gives_way_to_the_noise_of_its_baseline():
    # Held: 0.75. Changes in the second half: 0.25, 0.5, 0.25, of which the median is 0.25.
    noisy = run(0.0, 0.75, 0.75, 0.75, 0.5, 0.75, 0.25, 0.5)
    assert reached([noisy], [run(0.5, 0.5, 0.5)])[0].step == 1
    assert reached([noisy], [run(0.49, 0.5, 0.5)])[0] is None
    assert reached([noisy], [noisy])[0].step == 2


def test_a_run_reaches_its_own_level_and_seeds_are_kept_apart():
    baseline = [run(0.1, 0.6, 0.6, 0.6), run(0.2, 0.2, 0.2, seed=1), run(0.1, 0.1, 0.1, seed=3)]
    variant = [run(0.95, 0.1, 0.1, seed=1), run(0.2, 0.6, 0.6, 0.7), run(0.1, 0.1, 0.1, seed=2)]
    found = reached(baseline, variant)
    assert {seed: check and check.step for seed, check in found.items()} == {0: 2, 1: None}
    own = reached(baseline, baseline)
    assert {seed: check.step for seed, check in own.items()} == {0: 2, 1: 1, 3: 1}


def test_runs_that_say_nothing_are_left_out():
    whole = run(0.1, 0.5, 0.5, 0.5)
    failed = record(0, 0.5, status="failed")
    assert reached([failed], [whole]) == {}
    assert reached([whole], [failed]) == {}
    for nothing in (run(), run(0.5, 0.5), run(math.nan, 0.5, 0.5)):  # no level is held
        assert reached([nothing], [whole]) == {}
    assert reached([whole], [run(0.9, 0.9)]) == {0: None}


def test_noise_is_that_of_the_second_half():
    # Held: 0.5. Changes in the second half: 0, 0, 0.25; in the first they are larger.
    settled = run(0.0, 0.7, 0.0, 0.7, 0.5, 0.5, 0.5, 0.75)
    assert reached([settled], [run(0.4, 0.4, 0.4)])[0] is None
