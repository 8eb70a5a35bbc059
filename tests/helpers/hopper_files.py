"""Made-up trajectories of the hopper in the file that a simulation leaves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules import hopper_simulator


def write_hopper(cache_dir: Path, n_trajectories: int = 40, n_points: int = 20) -> Tensor:
    """Write random walks, shape ``(n_trajectories, n_points, 14)``, and return them."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n_trajectories, n_points, 14, generator=generator).cumsum(1)
    name = f"hopper-{n_trajectories}x{n_points}-seed{hopper_simulator.SEED}-made-up.pt"
    torch.save({"states": states}, cache_dir / name)
    return states


def without_dm_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that dm_control is not installed, so that files of any versions are taken."""
    monkeypatch.setattr(hopper_simulator, "_PACKAGES", ("no-such-package",))
    monkeypatch.setitem(__import__("sys").modules, "dm_control", None)
