"""The command: every experiment at scale smoke, what it writes, and what it refuses."""

import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from reproduce import __main__ as command
from reproduce.catalogue import EXPERIMENTS, GROUPS
from reproduce.records import read_records
from reproduce.runs import Run


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One folder for all experiments, which share runs."""
    return tmp_path_factory.mktemp("results")


def run(*arguments):
    jobs = [] if "--jobs" in arguments else ["--jobs", "0"]
    return command.main([*map(str, arguments), "--scale", "smoke", *jobs])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke(name, output, data_dir):
    run(name, "--output", output, "--data_dir", data_dir)
    folder = output / name / "smoke"
    experiment = EXPERIMENTS[name]("smoke")
    for (record,) in read_records(folder / "records.jsonl", experiment).values():
        assert record.status == "finished", record.message
        for metric in experiment.metrics:
            assert math.isfinite(record.value(metric.key)), metric.key
        assert record.checks[-1].nfe_forward > 0
        assert record.checks[-1].cpu_seconds > 0
    table = (folder / "table.md").read_text()
    assert table.startswith(f"## {experiment.title}\n\n    python -m reproduce {name} ")
    assert "**Scale `smoke`, not a reproduction.**" in table
    for part in experiment.comparisons:
        for variant in part.variants:
            assert part.setting in table
            assert f"| {variant.label} | " in table
    assert "nan" not in table
    for text in (table, (folder / "records.jsonl").read_text()):  # nothing of this machine
        assert str(output) not in text
        assert str(data_dir) not in text
    assert imread(folder / "figure.png")[..., :3].std() > 0.01  # something is drawn


def test_a_page_is_redrawn_from_its_records(output, data_dir, tmp_path):
    run("figure2", "--output", output, "--data_dir", data_dir)
    folder = output / "figure2" / "smoke"
    run("figure2", "--records", folder / "records.jsonl", "--output", tmp_path)
    pages = [(where / "figure2/smoke/table.md").read_text() for where in (output, tmp_path)]
    first, second = (page.splitlines()[4:] for page in pages)  # below the command
    assert first == second
    images = [imread(where / "figure2/smoke/figure.png") for where in (output, tmp_path)]
    assert (images[0] == images[1]).all()
    for name, file, scale in (
        ("figure2", folder / "records.jsonl", "short"),
        ("figure3", folder / "records.jsonl", "smoke"),
    ):
        nowhere = [name, "--scale", scale, "--records", str(file), "--output", str(tmp_path / "x")]
        with pytest.raises(SystemExit, match=f"has no run of {name} at scale {scale}"):
            command.main(nowhere)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("scale", "least"), [("short", "table4"), ("full", "figure1")])
def test_the_records_of_the_repository_give_its_tables(tmp_path, scale, least, rough):
    results = Path(command.__file__).parents[1] / "docs" / "results" / scale
    found = ["--records", str(results / "records.jsonl"), "--output", str(tmp_path)]
    command.main(["all", "--scale", scale, *found])
    recorded = [name for name in EXPERIMENTS if (results / f"{name}.md").is_file()]
    assert least in recorded
    for name in recorded:
        (table,) = (tmp_path / name).glob("*/table.md")  # of `paper` where that is no other scale
        metrics = [
            path.read_text().partition("![")[0].splitlines()[4:]
            for path in (table, results / f"{name}.md")
        ]
        assert metrics[0] == metrics[1]


@pytest.fixture
def rough(monkeypatch):
    """Pictures of experiments at a low resolution."""
    monkeypatch.setattr(command, "save_figure", lambda figure, path: figure.savefig(path, dpi=20))


@pytest.fixture
def asked(monkeypatch):
    """What would have been executed, one entry for each command."""
    calls = []
    monkeypatch.setattr(command, "execute_all", lambda *given: calls.append(given))
    return calls


def test_a_second_command_trains_nothing(output, data_dir, request, capsys):
    where = ("--output", output, "--data_dir", data_dir)
    run("figure3", *where)
    asked = request.getfixturevalue("asked")
    run("figure3", *where)
    assert "figure3: " in capsys.readouterr().out
    run("figure3", *where, "--seeds", "2")
    (nothing, *_), (left, *_) = asked
    assert nothing == []
    assert [r.seed for r in left] == [1, 1, 1]


def test_an_estimate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "time_training", lambda run: (3.0, 1000))
    run("figure3", "table5", "--seeds", "2", "--estimate", "--output", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    # A step of 3 s, a thousand steps, three variants, two seeds: 300 minutes.
    lines = [line for line in lines if "cannot run: Expected the" not in line]
    assert lines[1].split() == ["figure3", "smoke", "6", "300", "50.0"]
    assert lines[2].split("  and ")[1] == "8 without data"


def test_what_is_left_when_the_time_is_up(tmp_path, asked, capsys):
    before = time.monotonic()
    arguments = ["figure3", "--scale", "smoke", "--minutes", "25", "--output", str(tmp_path)]
    assert command.main([*arguments, "--override=--data.n_val=4"]) == 75
    ((runs, jobs, _, deadline),) = asked
    assert (len(runs), jobs) == (3, 1)
    assert all("--data.n_val=4" in r.arguments() for r in runs)
    assert 1500.0 <= deadline - before <= 1600.0
    assert "The time is up: 3 runs are left. The same command goes on." in capsys.readouterr().out
    assert "- pending: not trained yet" in (tmp_path / "figure3/smoke/table.md").read_text()


def test_slurm_gets_the_resources(tmp_path, monkeypatch):
    asked = []
    module = SimpleNamespace(execute_on_slurm=lambda *given: asked.append(given))
    monkeypatch.setitem(sys.modules, "reproduce.slurm", module)
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    run("figure3", "--output", tmp_path, "--launcher", "slurm", "--jobs", "7", "--minutes", "3",
        "--slurm", "partition=gpu", "--slurm=time=90")  # fmt: skip
    ((runs, jobs, _, folder, resources, minutes),) = asked
    assert (len(runs), jobs) == (3, 7)
    assert folder == tmp_path / "slurm"
    assert (resources, minutes) == ({"partition": "gpu", "time": 90}, 3.0)


def test_absent_data_is_named_and_ends_nothing(tmp_path):
    run("table5", "--output", tmp_path, "--data_dir", tmp_path / "nothing")
    table = (tmp_path / "table5" / "smoke" / "table.md").read_text()
    assert "| MNIST, NODE | without | 97.2 +- 0.2 | not run | 0 |" in table
    assert "- not run: Expected the MNIST file" in table
    assert "-- MNIST, NODE, without (seed 0) and 1 more" in table


def test_a_failing_run_ends_no_other(tmp_path, monkeypatch):
    variants = EXPERIMENTS["figure3"]("smoke").variants

    def fail(self):
        if self.variant == variants[1]:
            raise RuntimeError("a fault")
        return arguments(self)

    arguments = Run.fit_arguments
    monkeypatch.setattr(Run, "fit_arguments", fail)
    run("figure3", "--output", tmp_path)
    table = (tmp_path / "figure3" / "smoke" / "table.md").read_text()
    assert f"| mixture | {variants[1].label} | failed | 0 |" in table
    assert f"- failed: RuntimeError: a fault -- mixture, {variants[1].label} (seed 0)" in table
    metrics = table.partition("\nWork")[0]
    assert metrics.count("| 1 | ") == 2 * len(EXPERIMENTS["figure3"]("smoke").metrics)


def test_tables_of_what_is_there(tmp_path, rough):
    run("all", "--tables_only", "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(EXPERIMENTS)
    for name in EXPERIMENTS:
        table = (tmp_path / name / "smoke" / "table.md").read_text()
        assert "| without | " in table or "| b = 0 | pending | 0 |" in table
        assert "- pending: not trained yet -- " in table
        assert (tmp_path / name / "smoke" / "figure.png").is_file()


def test_list(capsys):
    run("--list")
    text = capsys.readouterr().out
    for name in (*EXPERIMENTS, *GROUPS):
        assert f"{name} " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment, or `all`, or ask for --list"),
        (["table9"], "Expected the name of an experiment, but got 'table9'. Use all, sweep_b, "),
        (["table5", "--records", "no.jsonl"], "expected the file of --records, but there is no"),
        (["table5", "--seeds", "0"], "expected --seeds of at least 1, but got 0"),
        (["table5", "--jobs", "-1"], "expected --jobs of at least 0, but got -1"),
        (["table5", "--minutes", "0"], "expected --minutes above 0, but got 0"),
        (["table5", "--slurm", "time=3"], "expected --launcher slurm beside --slurm"),
        (["table5", "--launcher=slurm", "--slurm=time"], "NAME=VALUE, but got 'time'"),
        (["table5", "--launcher=slurm", "--slurm=time=4:00:00"], "time=MINUTES, a whole number"),
        (["table5", "--launcher=slurm", "--jobs=0"], "expected --jobs of at least 1, but got 0"),
        (["table5", "--launcher=slurm"], "expected submitit for --launcher slurm: pip install"),
        (["table5", "--scale", "huge"], "invalid choice: 'huge'"),
        (["figure1", "--task", "toy2d"], "expected --task beside `regularizers`, but got"),
        (["regularizers", "--task", "toys"], "invalid choice: 'toys'"),
    ],
)
def test_refusals(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as done:
        command.main(arguments)
    assert done.value.code == 2
    assert message in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []
