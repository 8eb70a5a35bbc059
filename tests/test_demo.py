import csv

import pytest

from scripts.demo import VARIANTS, report, run

TINY = [
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--data.n_train=8", "--data.n_val=8",
    "--data.n_test=8", "--data.batch_size=4", "--model.flow.vector_field.hidden=[4]",
]  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_says_what_was_measured(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo.py"])
    result = run([*TINY, *VARIANTS[name]])
    with (tmp_path / result.folder / "plots/end_time_sweep_test.csv").open() as file:
        rows = {float(row["end_time"]): float(row["nll"]) for row in csv.DictReader(file)}
    assert result.worst == -max(rows.values())
    assert result.at_t1 == pytest.approx(-rows[1.0], abs=1e-4)
    assert min(rows) == 0.5
    (line,) = (line for line in report({name: result}).splitlines() if line.startswith(name))
    shown = [float(number) for number in line.removeprefix(name).split()]
    expected = [
        result.at_t1, result.worst, result.nfe_test, result.nfe_train, result.seconds,
    ]  # fmt: skip
    assert shown == pytest.approx(expected, abs=0.06)
