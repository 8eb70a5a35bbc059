"""The comparison of regularisers: what is trained, its columns, the front, the verdict."""

import math
from dataclasses import fields, replace

import pytest
import yaml

import cli
from reproduce.catalogue import EXPERIMENTS, GROUPS
from reproduce.catalogue.regularizers import PENALTIES, metrics
from reproduce.experiments import Comparison, Metric, Variant
from reproduce.figures import draw_pareto
from reproduce.pareto import cell, front, half_the_evaluations, mean_points, write_tables
from reproduce.records import read_records, write_records
from reproduce.report import write_page
from reproduce.runs import CONFIGS
from tests.reproduce.records import MACHINE, checks, experiment, record

ACCURACY, WORST, NFE, SECONDS, WORK = metrics(
    Metric("test/accuracy", "accuracy, %", "higher", 100.0, 1, matters=2.5)
)
NLL = Metric("test/nll", "NLL", "lower", digits=2, matters=0.025)
BASE, HALF, MORE, WRONG = (Variant(x, "cnf/toy2d") for x in ("without", "half", "more", "wrong"))
PART = Comparison("toys", BASE, (HALF, MORE, WRONG))


def runs(accuracies, evaluations):
    """A record for each seed."""
    return [
        record(seed, a, values={"test/accuracy": a, "test/nll": -a, "test/nfe_forward": n})
        for seed, (a, n) in enumerate(zip(accuracies, evaluations, strict=True))
    ]


RESULTS = {
    BASE: runs([0.90, 0.91, 0.92], [40, 44, 42]),
    HALF: runs([0.90, 0.92, 0.91], [20, 22, 21]),
    MORE: runs([0.90, 0.91, 0.92], [20, 24, 20]),
    WRONG: runs([0.80, 0.81, 0.82], [8, 8, 8]),
}


HALVED = ", 1 of 3 variants:** half (**x 0.50 [0.50, 0.50]**; {})."
NONE = ": none of {} variants.** The fewest evaluations without a loss: {}."


@pytest.mark.parametrize(
    ("others", "metric", "said"),
    [
        ((HALF, MORE, WRONG), ACCURACY, HALVED.format("+0.0 [-2.5, +2.5]")),
        ((HALF, MORE, WRONG), NLL, HALVED.format("+0.00 [-0.02, +0.02]")),
        # The same interval, where a smaller loss matters.
        ((HALF,), replace(ACCURACY, matters=2.0), NONE.format(1, "there is none")),
        (
            (WRONG, MORE),
            ACCURACY,
            NONE.format(2, "more (**x 0.51 [0.43, 0.60]**; +0.0 [+0.0, +0.0])"),
        ),
    ],
)
def test_half_the_evaluations_at_no_loss(others, metric, said):
    line = half_the_evaluations(Comparison("toys", BASE, others), NFE, metric, RESULTS)
    assert line == f"**toys{said}"


@pytest.mark.parametrize("broken", ["two seeds", "not finite"])
def test_no_verdict_on_too_little(broken):
    results = {variant: records[:2] for variant, records in RESULTS.items()}
    if broken == "not finite":
        results = {**RESULTS, HALF: runs([0.9, math.nan, 0.9], [20, 20, 20])}
    line = half_the_evaluations(Comparison("toys", BASE, (HALF,)), NFE, ACCURACY, results)
    assert line == "toys: no verdict, which takes 3 seeds."


@pytest.mark.parametrize(
    ("points", "higher", "expected"),
    [
        ({"a": (1, 0.8), "b": (2, 0.9), "c": (3, 0.85), "d": (2, 0.7)}, True, ["a", "b"]),
        ({"a": (1, 0.8), "b": (2, 0.9), "c": (3, 0.85), "d": (2, 0.7)}, False, ["a", "d"]),
        ({"b": (1, 2), "a": (1, 2)}, False, ["b", "a"]),  # equal points
        ({"a": (1, 2), "b": (1, 1), "c": (2, 1)}, False, ["b"]),
        ({}, True, []),
    ],
)
def test_front(points, higher, expected):
    assert front(points, higher) == expected


def test_points_are_means_of_what_has_all_seeds():
    results = {**RESULTS, MORE: RESULTS[MORE][:2], WRONG: runs([0.8, math.nan, 0.8], [8, 8, 8])}
    assert mean_points(PART, NFE, ACCURACY, results) == {  # as the tables have them: geometric
        BASE: (pytest.approx((40 * 44 * 42) ** (1 / 3)), pytest.approx(91.0)),
        HALF: (pytest.approx((20 * 22 * 21) ** (1 / 3)), pytest.approx(91.0)),
    }


@pytest.mark.parametrize(
    ("key", "sweep", "expected"),
    [
        ("sweep/accuracy@min", [0.7, 0.9, 0.8], 0.7),
        ("sweep/accuracy@max", [0.7, 0.9, 0.8], 0.9),
        ("sweep/accuracy@min", [0.7, math.nan, 0.8], math.nan),
        ("sweep/loss@max", [0.7, 0.9, 0.8], math.nan),
    ],
)
def test_worst_over_the_end_times(key, sweep, expected):
    made = record(0, 0.5, sweep={"end_time": [0.5, 1.0, 1.5], "accuracy": sweep})
    assert made.value(key) == pytest.approx(expected, nan_ok=True)


def test_work_of_a_training():
    made = record(0, 0.5, checks=checks([0.1, 0.2], seconds=10.0, nfe=100.0))
    assert (made.value("train/seconds"), made.value("train/nfe")) == (20.0, 300.0)
    assert replace(made, machine={**MACHINE, "gpu": "A GPU"}).value("train/seconds") == 40.0


def test_the_worst_of_a_metric_is_on_its_worse_side():
    assert WORST.key == "sweep/accuracy@min"
    assert metrics(NLL)[1].key == "sweep/nll@max"


def test_cells():
    base, half, wrong = RESULTS[BASE], RESULTS[HALF], RESULTS[WRONG]
    assert cell(NFE, [], base) == "42.0"
    assert cell(NFE, base, half) == "21.0 (**x 0.50 [0.50, 0.50]**)"
    assert cell(ACCURACY, base, half) == "91.0 (+0.0 [-2.5, +2.5])"
    assert cell(ACCURACY, base, wrong) == "81.0 (**-10.0 [-10.0, -10.0]**)"
    assert cell(ACCURACY, base[:1], wrong[:1]) == "80.0 (-10.0)"
    assert cell(WORK, base, half) == "300 (x 1.00 [1.00, 1.00])"
    assert cell(ACCURACY, base, runs([math.nan], [20])) == "gap"
    assert cell(ACCURACY, base, [record(0, 0.0, status="failed")]) == "failed"
    assert cell(ACCURACY, base, []) == "pending"


PAGE = experiment((ACCURACY, NFE), comparisons=(PART,), tables=write_tables)


def test_page_and_figure_say_the_same():
    page, figure = write_page(PAGE, RESULTS), draw_pareto(PAGE, RESULTS)
    assert "- **toys, 1 of 3 variants:** half (" in page
    assert "| variant | n | accuracy, % | NFE of a test batch |" in page
    assert "| half | 3 | 91.0 (+0.0 [-2.5, +2.5]) | 21.0 (**x 0.50 [0.50, 0.50]**) |" in page
    assert "against test evaluations (means): wrong; half." in page
    assert "Work in training" not in page
    (axis,) = figure.axes
    line = axis.lines[-1]
    assert list(line.get_xdata()) == pytest.approx([8.0, (20 * 22 * 21) ** (1 / 3)])
    assert list(line.get_ydata()) == pytest.approx([81.0, 91.0])
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == ["without", "half", "more", "wrong", "Pareto front"]


def test_what_lies_far_from_the_front_is_told_in_words():
    (axis,) = draw_pareto(PAGE, RESULTS | {MORE: runs([0.2] * 3, [50] * 3)}).axes
    assert [text.get_text() for text in axis.texts] == ["not shown: 20"]
    assert 75.0 < axis.get_ylim()[0] < 81.0 < 91.0 < axis.get_ylim()[1] < 95.0


def test_nothing_has_run():
    nothing = {variant: [] for variant in RESULTS}
    page = write_page(PAGE, nothing)
    draw_pareto(PAGE, nothing)
    assert "- toys: no verdict, which takes 3 seeds." in page
    assert "(means): nothing yet." in page
    assert "| half | 0 | pending | pending |" in page


def test_the_evaluations_of_a_block_are_kept_where_they_are_shown(tmp_path):
    block = Metric("test/nfe_forward/network.decoder", "NFE", "lower")
    values = {block.key: 40.0, "test/nfe_forward/network.encoder": 170.0}
    made = experiment((block,))
    results = {variant: [record(0, 0.5, values=values)] for variant in made.variants}
    write_records(tmp_path / "records.jsonl", made, results)
    for (found,) in read_records(tmp_path / "records.jsonl", made).values():
        assert found.values == {block.key: 40.0}


@pytest.mark.parametrize("scale", ["short", "paper"])
@pytest.mark.parametrize("name", GROUPS["regularizers"])
def test_what_is_trained(name, scale):
    made = EXPERIMENTS[name](scale)
    full, *shorter = made.comparisons
    labels = [variant.label for variant in full.variants]
    assert len(set(labels)) == len(labels)
    for penalty in PENALTIES:
        assert len([label for label in labels if label.startswith(f"{penalty}, weight ")]) == 3
    assert len([label for label in labels if label.startswith("STEER and ")]) == 3
    assert len([label for label in labels if label.startswith("STEER")]) >= 5
    assert [len(part.variants) for part in shorter] == [15] * len(shorter)
    for part in made.comparisons:
        assert {variant.weights for variant in part.variants} == {"last"}
        for variant in part.others:  # everything else is the same
            assert variant.overrides[: len(part.baseline.overrides)] == part.baseline.overrides


def test_no_penalty_is_left_out():
    assert {option for option, _ in PENALTIES.values()} == {f.name for f in fields(cli.Penalties)}


@pytest.mark.parametrize("name", GROUPS["regularizers"])
def test_one_step_has_the_tolerance_of_the_solver(name):
    full = EXPERIMENTS[name]("short").comparisons[0]
    config = yaml.safe_load((CONFIGS / f"{full.baseline.config}.yaml").read_text())
    (part,) = (x for x in config["model"]["init_args"].values() if "solver" in str(x))
    solver = part["init_args"]["solver"]["init_args"]
    one_step = [v for v in full.others if v.label.startswith("local error of one step")]
    assert len(one_step) == 6
    for variant in one_step:
        given = dict(a.split("=") for a in variant.overrides if a.startswith("--penalties."))
        tolerances = [float(given[f"--penalties.local_error.{key}"]) for key in ("rtol", "atol")]
        assert tolerances == [solver["rtol"], solver["atol"]]
