"""Each file in examples/ runs, briefly, and learns something."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median

import optuna
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
LOOPS = ("raw_torchdiffeq", "torchdyn_node", "lightning_pytorch", "fabric_loop", "plain_loop")


def load(name):
    spec = spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*LOOPS, "sweep_b_optuna"}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_learns_within_sixty_lines(name):
    losses = load(name).main(steps=16)
    assert len(losses) == 16
    assert median(losses[8:]) < 0.95 * median(losses[:4])
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60


@pytest.fixture
def sweep(monkeypatch):
    module = load("sweep_b_optuna")
    monkeypatch.setattr(module, "EPOCH", 1)
    monkeypatch.setattr(module, "N_CHECKS", 2)
    return module


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'sweep.db'}"


def test_a_sweep_goes_on_where_it_was_stopped(sweep, storage):
    first = sweep.main(trials=1, storage=storage).trials
    second = sweep.main(trials=2, storage=storage).trials
    assert len(second) == 2
    assert second[0].params == first[0].params
    assert set(second[1].intermediate_values) == {0, 1}
    assert sweep.main(trials=2, storage=storage).trials == second


def test_a_sweep_prunes_what_goes_badly(sweep, storage):
    study = optuna.create_study(storage=storage, study_name="sweep_b")
    for _ in range(4):
        study.add_trial(optuna.trial.create_trial(value=-1.0, intermediate_values={0: -1.0}))
    last = sweep.main(trials=5, storage=storage).trials[-1]
    assert last.state == optuna.trial.TrialState.PRUNED
    assert set(last.intermediate_values) == {0}
