import pytest

from tests.helpers.data_sets import write_every_data_set


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduce"])
    monkeypatch.delenv("STEER_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        write_every_data_set(folder, patch)
        yield folder
