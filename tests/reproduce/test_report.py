import math
from dataclasses import replace

import pytest
from scipy import stats

from reproduce.experiments import Claim, Metric
from reproduce.report import caption, metric_table, write_page
from tests.reproduce.records import ACCURACY, BASELINE, MACHINE, STEER, experiment, record

CLAIMS = (Claim("STEER is more accurate", "test/accuracy"),)
RESULTS = {
    BASELINE: [record(0, 0.5, (0.1, 0.4, 0.4, 0.4)), record(1, 0.6, (0.2, 0.5, 0.5, 0.5))],
    STEER: [record(0, 0.61, (0.4, 0.6, 0.4)), record(1, 0.7099, (0.5, 0.6, 0.5))],
}

BEGINNING = """\
## Table 9: an example

    python -m reproduce table9

**Scale `short`, not a reproduction.** One epoch of ten. Seeds 0, 1 (weights, noise, end times"""
# Prose is compared with the pages of docs/results in test_command.py.
TABLES = """\
| setting | variant | paper | accuracy, % | n | difference [95 %] | verdict |
| MNIST | without | 0.50 | 55.0 +- 7.1 | 2 |  |  |
| MNIST | STEER | 0.60 | 66.0 +- 7.1 | 2 | +11.0 [+10.9, +11.1] | gain |
| setting | variant | evaluations in training | n | ratio to baseline [95 %] | verdict |
| MNIST | without | 600 */ 1 | 2 |  |  |
| MNIST | STEER | 450 */ 1 | 2 | 0.75 [0.75, 0.75] | gain |
| setting | variant | seconds of training | n | ratio to baseline [95 %] | verdict |
| MNIST | without | 40 */ 1 | 2 |  |  |
| MNIST | STEER | 30 */ 1 | 2 | 0.75 [0.75, 0.75] | gain |
| setting | variant | evaluations in a test batch | n | ratio to baseline [95 %] | verdict |
| MNIST | without | 26 */ 1 | 2 |  |  |
| MNIST | STEER | 26 */ 1 | 2 | 1 [1, 1] | no difference larger than a factor of 1 |
| setting | variant | seconds to reach | n | ratio to baseline [95 %] | verdict |
| MNIST | without | 20 */ 1 | 2 |  |  |
| MNIST | STEER | 10 */ 1 | 2 | 0.5 [0.5, 0.5] | gain |
"""


def cells(table, row):
    """The cells of a row, counted from the end if negative."""
    return [cell.strip() for cell in table.splitlines()[row].split("|")[1:-1]]


def test_a_whole_page():
    page = write_page(experiment(), RESULTS, "python -m reproduce table9")
    assert page.startswith(BEGINNING.rstrip("\n"))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows == TABLES.splitlines()
    assert "\n\nseconds to reach (lower is better; geometric means, spread as a factor; " in page
    assert "; evaluations in test batches are means over 5 of them. *To reach*: " in page
    assert page.endswith(
        "\nMade by commit 0123456789 on Some CPU, 1 of 2 threads; Python 3.11.7, torch 2.15.0.\n"
    )


@pytest.mark.parametrize(
    ("scale", "claims", "beginning"),
    [
        ("smoke", CLAIMS, "**Scale `smoke`, not a reproduction.**"),
        ("full", CLAIMS, "In full length, but **not the paper's setting.**"),
        ("paper", CLAIMS, "Reproduction at the paper's scale."),
        ("paper", (), "In full length; **not in the paper.**"),
    ],
)
def test_only_the_papers_scale_is_called_a_reproduction(scale, claims, beginning):
    text = caption(experiment(scale=scale, claims=claims, notes=("A note.",)), RESULTS)
    assert text.startswith(f"{beginning} One epoch of ten. Seeds 0, 1 ")
    assert text.endswith("\n\nA note.")


def test_one_seed_gives_no_verdict():
    results = {variant: records[:1] for variant, records in RESULTS.items()}
    row = cells(metric_table(experiment(), ACCURACY, results), -1)
    assert row == ["MNIST", "STEER", "0.60", "61.0", "1", "+11.0", "one seed: no verdict"]
    assert "Seed 0 (" in caption(experiment(), results)


def test_other_metrics_stand_alone():
    other = Metric("test/nfe_forward", "NFE", "lower", digits=0)
    shown = experiment((ACCURACY, other))
    table = metric_table(shown, other, RESULTS)
    assert table.startswith("NFE (lower is better):")
    assert cells(table, 2) == ["setting", "variant", "NFE", "n", "difference [95 %]", "verdict"]
    assert cells(table, -1)[2:] == ["26 +- 0", "2", "+0 [+0, +0]", "no difference larger than 0"]


def test_ratios_of_what_spans_decades():
    errors = Metric("mse", "MSE", "lower", ratio=True)
    results = {
        BASELINE: [record(s, 0.5, values={"mse": v}) for s, v in enumerate([1.0, 100.0])],
        STEER: [record(s, 0.5, values={"mse": v}) for s, v in enumerate([0.1, 10.0])],
    }
    table = metric_table(experiment((errors,)), errors, results)
    assert table.startswith("MSE (lower is better; geometric means, spread as a factor):")
    spread = math.exp(math.log(100.0) / math.sqrt(2.0))
    assert cells(table, -2)[3] == f"10 */ {spread:.2g}"
    assert cells(table, -1)[3:] == [f"1 */ {spread:.2g}", "2", "0.1 [0.1, 0.1]", "gain"]


@pytest.mark.parametrize(("value", "shown"), [(0.0, "nan"), (math.inf, "inf")])
def test_ratios_of_what_has_no_logarithm(value, shown):
    errors = Metric("mse", "MSE", "lower", ratio=True)
    results = {
        variant: [record(0, 0.5, values={"mse": mse})]
        for variant, mse in ((BASELINE, 1.0), (STEER, value))
    }
    assert cells(metric_table(experiment((errors,)), errors, results), -1)[3] == shown


def test_seeds_without_a_partner_are_told_from_those_compared():
    made = experiment()
    results = {v: [record(s, 0.5) for s in range(n)] for v, n in ((BASELINE, 2), (STEER, 3))}
    table = metric_table(made, made.metrics[0], results)
    assert "3 (2 compared)" in cells(table, -1)


def test_what_zero_in_an_interval_means():
    errors = Metric("mse", "MSE", "lower", ratio=True, matters=1.25)
    logs = {BASELINE: [0.0, 0.0, 0.0], STEER: [0.1, -0.1, 0.0]}
    results = {
        variant: [record(s, 0.5, values={"mse": math.exp(v)}) for s, v in enumerate(values)]
        for variant, values in logs.items()
    }
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3.0)
    table = metric_table(experiment((errors,)), errors, results)
    assert "; a factor of 1.25 would matter):" in table
    assert cells(table, -1)[-1] == f"not shown (needs a factor of {math.exp(half):.3g})"
    table = metric_table(experiment((errors,)), replace(errors, matters=1.3), results)
    assert cells(table, -1)[-1] == f"no difference larger than a factor of {math.exp(half):.3g}"


@pytest.mark.parametrize(
    ("second", "shown", "verdict"),
    [
        ((0.1, 0.6, 0.6, 0.6), "not reached (1 of 2)", "not reached by all: no verdict"),
        ((0.1, 0.2, 0.3), "not reached (2 of 2)", "not reached"),
    ],
)
def test_a_level_that_is_not_reached(second, shown, verdict):
    late = {**RESULTS, STEER: [record(0, 0.6, (0.1, 0.2)), record(1, 0.6, second)]}
    row = [line for line in write_page(experiment(), late).splitlines() if "STEER" in line][-1]
    assert row == f"| MNIST | STEER | {shown} | 2 |  | {verdict} |"


def test_what_old_records_do_not_hold():
    values = {"test/accuracy": 0.5, "test/nfe_forward": 26.0}
    old = [record(0, 0.5, values=values, monitor="", machine={**MACHINE, "note": " Of old."})]
    page = write_page(experiment(), {BASELINE: old, STEER: old})
    assert "evaluations in test batches are means.\n" in page
    assert "to reach" not in page.lower()
    assert page.endswith("torch 2.15.0. Of old.\n")


def test_all_commits_of_a_run_are_named():
    machine = {**MACHINE, "commit": f"{'a' * 40} {'b' * 40}"}
    page = write_page(experiment(), {BASELINE: [record(0, 0.5, machine=machine)], STEER: []})
    assert f"Made by commit {'a' * 10} then {'b' * 10} on Some CPU" in page


@pytest.mark.parametrize("change", [{"cpu": "Another CPU"}, {"commit": "b" * 40}])
def test_seconds_of_two_processors_or_commits_are_not_compared(change):
    other = {**MACHINE, **change}
    results = {
        BASELINE: [record(seed, 0.5, (0.3, 0.3, 0.3)) for seed in (0, 1)],
        STEER: [record(0, 0.5, (0.3, 0.3, 0.3)), record(1, 0.5, (0.3, 0.3, 0.3), machine=other)],
    }
    rows = [line for line in write_page(experiment(), results).splitlines() if "| STEER" in line]
    compared = ["2", "2", "2 (1 compared)", "2", "2 (1 compared)"]
    assert [row.split(" | ")[-3] for row in rows] == compared


def test_each_run_is_timed_by_its_own_clock():
    held = (0.3, 0.3, 0.3)
    on_gpu = [record(0, 0.5, held, machine={**MACHINE, "gpu": "A GPU"})]
    page = write_page(experiment(), {BASELINE: [record(0, 0.5, held)], STEER: on_gpu})
    to_reach = [line for line in page.splitlines() if "| 1 " in line][-2:]
    assert [row.split(" | ")[2] for row in to_reach] == ["10", "20"]
    assert "on A GPU, " in page


@pytest.mark.parametrize("status", ["failed", "not run"])
def test_what_did_not_run_is_named(status):
    gone = [record(s, 0.0, status=status, message="No\nfile | here") for s in (0, 1)]
    table = write_page(experiment(), {**RESULTS, STEER: gone})
    assert f"| MNIST | STEER | 0.60 | {status} | 0 |  |  |" in table
    assert f"- {status}: No file / here -- MNIST, STEER (seed 0) and 1 more" in table


def test_nothing_has_run():
    gone = {variant: [record(0, 0.0, status="pending")] for variant in (BASELINE, STEER)}
    assert write_page(experiment(), gone).endswith("Nothing has run.\n")
