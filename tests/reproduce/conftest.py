import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduce"])
    monkeypatch.delenv("STEER_DATA_DIR", raising=False)
    return tmp_path
