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


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_is_that_of_scipys_paired_test(level):
    found = paired(A, B, "higher", level)
    expected = stats.ttest_rel([*B.values()], [*A.values()]).confidence_interval(level)
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


@pytest.mark.parametrize(
    ("values", "target", "mode", "step"),
    [
        ([0.1, 0.5, 0.4, 0.9], 0.5, "max", 2),  # equal is enough, and the first one counts
        ([0.1, 0.5, 0.4, 0.9], 0.95, "max", None),
        ([0.9, 0.4, 0.5], 0.5, "min", 2),
        ([math.nan, 0.6], 0.5, "max", 2),
        ([0.1, 0.6], math.nan, "max", None),
    ],
)
def test_first_check_that_reaches_a_target(values, target, mode, step):
    baseline = record(0, 0.5, (target,), mode=mode)
    found = reached([baseline], [record(0, 0.5, values)])[0]
    assert (found and found.step) == step


def test_reaching_the_last_metric_of_the_same_seed():
    baseline = [record(0, 0.5, (0.1, 0.6, 0.5)), record(1, 0.5, (0.1, 0.9)), record(3, 0.5)]
    variant = [record(1, 0.5, (0.95, 0.1)), record(0, 0.5, (0.2, 0.4)), record(2, 0.5)]
    found = reached(baseline, variant)
    assert {seed: check and check.step for seed, check in found.items()} == {0: None, 1: 1}
    own = reached(baseline[:2], baseline[:2])
    assert {seed: check.step for seed, check in own.items()} == {0: 2, 1: 2}


def test_runs_without_a_result_are_left_out():
    failed = record(0, 0.5, status="failed")
    assert reached([failed], [record(0, 0.5)]) == {}
    assert reached([record(0, 0.5)], [failed]) == {}
    assert reached([record(0, 0.5, ())], [record(0, 0.5)]) == {}
