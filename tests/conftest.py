import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seeds(monkeypatch):
    """The same random numbers in each test, whatever ran before it."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets, read-only: STEER_DATA_DIR, or shared/data beside the project."""
    folder = Path(os.environ.get("STEER_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set STEER_DATA_DIR")
    return folder
