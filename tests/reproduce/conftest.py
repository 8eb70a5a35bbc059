import pytest
from matplotlib.figure import Figure

from reproduce.runs import execute
from steer_lightning.callbacks import TrainingClock
from tests.helpers.data_sets import write_every_data_set
from tests.reproduce.running import TINY, make


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduce"])
    monkeypatch.delenv("STEER_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")  # of a module, as `unbroken` is
def sketches():
    """Small pictures of runs, one file each: tests of plots look at them."""
    base = "steer_lightning.callbacks.plots.base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{base}.save_figure", lambda _, path: Figure((1, 1)).savefig(path, dpi=8))
        patch.setattr(f"{base}.log_figure", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        write_every_data_set(folder, patch)
        yield folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["reproduce"])
        run = make(TINY.others[0], output=tmp_path_factory.mktemp("unbroken"))
        execute(run)
    return run


class Stop(Exception):
    """What stops a run."""


@pytest.fixture
def stopping(monkeypatch):
    """A function that executes a run up to a step."""

    def stop(run, step):
        kept = TrainingClock.on_train_batch_start

        def start(self, trainer, *rest):
            if trainer.global_step == step:
                raise Stop("here")
            kept(self, trainer, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingClock, "on_train_batch_start", start)
            execute(run)
        assert run.record().message == "Stop: here"

    return stop
