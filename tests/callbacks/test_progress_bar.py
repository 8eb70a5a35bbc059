import pytest

from steer_lightning.callbacks import NFEMonitor, SolverProgressBar, SteerCallback
from tests.callbacks.plots.drawing import make_cnf, make_trainer, toy_data


@pytest.mark.parametrize("epochs", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 2}])
def test_it_shows_evaluations_and_end_time_and_cuts_no_name(tmp_path, capsys, monkeypatch, epochs):
    monkeypatch.setenv("COLUMNS", "80")
    callbacks = SolverProgressBar(), NFEMonitor(), SteerCallback(0.25)
    trainer = make_trainer(tmp_path, *callbacks, enable_progress_bar=True, **epochs)
    trainer.fit(make_cnf(), toy_data(batch_size=16))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (first,) = (i for i, line in enumerate(lines) if line.startswith("Epoch 1"))
    shown = [lines[first].split()[-2], *(line.partition(":")[0] for line in lines[first + 1 :])]
    assert shown[:4] == ["train/nll:", "val/nll", "NFE", "T"]
    end_time = float(trainer.callback_metrics["steer/flow.horizon/end_time"])
    assert lines[first + 3] == f"T: {end_time:.4g}"
    assert lines[first + 2] == "NFE: 8"
    assert ("Epoch 1/1" in lines[first]) == (trainer.max_epochs == 2)
    assert "/-2" not in lines[first]
