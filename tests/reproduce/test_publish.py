"""What is published: pages, pictures, records side by side, and what they say of claims."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from reproduce.catalogue import EXPERIMENTS
from reproduce.experiments import Claim, Comparison, Metric, Variant
from reproduce.publish import judge, publish
from reproduce.records import read_records
from reproduce.report import WORK
from tests.reproduce.records import BASELINE, MACHINE, STEER, experiment, record

CLAIM = Claim("STEER is more accurate", "test/accuracy")
OTHER = Variant("other", "cnf/toy1d", ("--steer.b=0.25",))
PART = Comparison("MNIST", BASELINE, (STEER, OTHER))
BASE, MORE, LESS, NOISY = ([record(s, v) for s, v in enumerate(values)] for values in (
    (0.5, 0.6, 0.55), (0.7, 0.8, 0.75), (0.3, 0.4, 0.35), (0.7, 0.4, 0.55),
))  # fmt: skip


@pytest.mark.parametrize(
    ("steer", "other", "status"),
    [
        (MORE, MORE, "holds"),
        (MORE, LESS, "holds in part"),
        (MORE, NOISY, "holds in part"),
        (MORE, [], "holds in part"),
        (LESS, NOISY, "does not hold"),
        (NOISY, NOISY, "open"),
        (MORE[:1], [], "open"),  # one seed shows nothing
    ],
)
def test_status(steer, other, status):
    shown = experiment(comparisons=(PART,))
    found = judge(shown, CLAIM, {BASELINE: BASE, STEER: steer, OTHER: other})
    assert found.status == status
    assert len(found.seen) == 2


def test_a_claim_may_expect_no_gain_and_be_about_work_or_some_settings():
    results = {BASELINE: BASE, STEER: LESS, OTHER: LESS}
    shown = experiment(comparisons=(PART,))
    none = Claim("no gain", "test/accuracy", ("loss", "no difference"))
    assert judge(shown, none, results).status == "holds"
    assert judge(shown, Claim("faster", WORK[0].key), results).status == "does not hold"
    elsewhere = Claim("elsewhere", "test/accuracy", settings="CIFAR")
    found = judge(shown, elsewhere, results)
    assert (found.seen, found.status) == ([], "open")


@pytest.mark.parametrize("make", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_claims_are_about_metrics_and_settings_that_there_are(make):
    shown = make("paper")
    for claim in shown.claims:
        assert claim.metric in {metric.key for metric in (*shown.metrics, *WORK)}
        assert judge(shown, claim, dict.fromkeys(shown.variants, ())).seen


@pytest.fixture
def catalogue(monkeypatch):
    """Two experiments, the first with a claim; both are drawn as a line."""

    def draw(_, results):
        figure = Figure()
        if results[BASELINE][0].machine:
            figure.subplots().plot([0.0, 1.0])
        return figure

    made = [
        experiment(name="table9", claims=(CLAIM,), draw=draw),
        experiment((Metric("test/nfe_forward", "NFE", "lower"),), name="sweep_c",
                   title="A sweep", draw=draw),
    ]  # fmt: skip
    makers = {e.name: lambda scale, e=e: replace(e, scale=scale) for e in made}
    monkeypatch.setattr("reproduce.publish.EXPERIMENTS", makers)
    return made


RESULTS = {BASELINE: BASE, STEER: MORE}


def test_what_is_published(catalogue, tmp_path):
    for made in catalogue:
        publish(tmp_path, made, RESULTS)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {
        "index.md", "records.jsonl", "table9.md", "table9.png", "sweep_c.md", "sweep_c.png"
    }  # fmt: skip
    page = (tmp_path / "table9.md").read_text()
    assert page.startswith(
        "## Table 9: an example\n\n    python -m reproduce table9 --scale short "
    )
    assert page.endswith("![Table 9: an example](table9.png)\n")
    index = (tmp_path / "index.md").read_text()
    assert "| STEER is more accurate ([Table 9](table9.md)) | **holds** | gain: 1 |" in index
    assert "Beyond the paper:\n\n- [A sweep](sweep_c.md)" in index
    assert "## STEER is more accurate: holds\n\n![Table 9: an example](table9.png)" in index
    assert "| MNIST | STEER | +20.0 [+20.0, +20.0] | 3 | gain |" in index


def test_an_index_of_runs_at_full_length_and_at_the_papers_scale(catalogue, tmp_path):
    for made, scale in zip(catalogue, ("full", "paper"), strict=True):
        publish(tmp_path, replace(made, scale=scale), RESULTS)
    index = (tmp_path / "index.md").read_text()
    assert "([Table 9](table9.md)) | **holds** | gain: 1 |" in index
    assert "- [A sweep](sweep_c.md)" in index


def test_all_pages_name_what_was_changed(catalogue, tmp_path):
    changed = {
        variant: [replace(record, overrides=["--trainer.max_epochs=5"]) for record in records]
        for variant, records in RESULTS.items()
    }
    publish(tmp_path / "runs", replace(catalogue[0], scale="paper"), changed)
    publish(tmp_path, catalogue[0], changed)
    publish(tmp_path, catalogue[0], read_records(tmp_path / "records.jsonl", catalogue[0]))
    for page in (tmp_path / "runs" / "table9.md", tmp_path / "table9.md"):
        text = page.read_text()
        assert " --seeds 3 --override=--trainer.max_epochs=5\n" in text
        assert "**Not as the experiment stands: with `--trainer.max_epochs=5`.** One epoch" in text
        assert "eproduction" not in text
    assert (tmp_path / "index.md").read_text().count("with `--trainer.max_epochs=5`.**") == 2


@pytest.mark.parametrize("rest", [[], [record(1, 0.0, status="pending")]])
def test_runs_of_two_machines_are_published_side_by_side(catalogue, tmp_path, rest):
    publish(tmp_path, catalogue[0], RESULTS)
    again = record(2, 0.1, machine={**MACHINE, "cpu": "Another CPU"})
    publish(tmp_path, catalogue[0], {BASELINE: [], STEER: [*rest, again]})
    found = read_records(tmp_path / "records.jsonl", catalogue[0])
    assert [r.values for r in found[BASELINE]] == [r.values for r in BASE]
    assert [r.values for r in found[STEER]] == [r.values for r in (*MORE[:2], again)]
    page = (tmp_path / "table9.md").read_text()
    assert "--seeds 3\n" in page
    assert page.count("Made by commit") == 2


def test_a_variant_that_has_another_name_now_is_kept(catalogue, tmp_path):
    publish(tmp_path, catalogue[0], RESULTS)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace('"variant":"STEER"', '"variant":"of old"'))
    publish(tmp_path, catalogue[0], RESULTS)
    assert path.read_text().count('"variant":"of old"') == len(MORE)
    assert path.read_text().count('"variant":"STEER"') == len(MORE)


def test_runs_with_other_overrides_are_not_mixed(catalogue, tmp_path):
    publish(tmp_path, catalogue[0], RESULTS)
    changed = [replace(r, overrides=["--trainer.max_epochs=5"]) for r in MORE]
    with pytest.raises(ValueError, match=r"with --override \[\], as some that .* holds, but got"):
        publish(tmp_path, catalogue[0], {BASELINE: [], STEER: changed})


def test_there_is_no_index_without_a_claim_that_ran(catalogue, tmp_path):
    publish(tmp_path, catalogue[1], RESULTS)
    assert not (tmp_path / "index.md").exists()


def test_records_are_kept_side_by_side_and_replaced(catalogue, tmp_path):
    path, elsewhere = tmp_path / "records.jsonl", {**MACHINE, "cpu": "Another CPU"}
    first, second = catalogue
    publish(tmp_path, first, RESULTS)
    publish(tmp_path, second, {BASELINE: [record(7, 0.1, machine=elsewhere)], STEER: []})
    publish(tmp_path, first, {**RESULTS, STEER: LESS})
    found = read_records(path, first)
    assert [r.values for r in found[STEER]] == [r.values for r in LESS]
    assert {r.machine["cpu"] for records in found.values() for r in records} == {"Some CPU"}
    (kept,) = read_records(path, second)[BASELINE]
    assert (kept.seed, kept.machine) == (7, elsewhere)
    assert path.read_text().count("machine") == 2  # written where it changes
    before = path.read_bytes()
    for made in (first, replace(first, name="table10")):
        message = f"at the scale of those that .* holds, short of .*, but got {made.name} at full"
        with pytest.raises(ValueError, match=message):
            publish(tmp_path, replace(made, scale="full"), RESULTS)
    assert path.read_bytes() == before


def test_what_cannot_be_drawn_again_stays(catalogue, tmp_path):
    made = catalogue[0]
    publish(tmp_path, made, RESULTS)
    before = (tmp_path / "table9.png").read_bytes()
    (tmp_path / "table9.png").write_bytes(before + b"x")
    undrawn = [replace(record, machine={}) for record in RESULTS[BASELINE]]
    publish(tmp_path, made, {**RESULTS, BASELINE: undrawn})
    assert (tmp_path / "table9.png").read_bytes() == before + b"x"


def test_nothing_that_has_not_run_is_published(catalogue, tmp_path):
    folder = tmp_path / "new"
    publish(folder, catalogue[0], {BASELINE: [record(0, 0.0, status="pending")], STEER: []})
    assert not folder.exists()
