"""Trajectories of the hopper of dm_control, simulated with MuJoCo and kept in a file."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor

from datamodules.cache import cached_tensors

# That of the public code of latent ODEs.
SEED = 123
N_POSITIONS = 7
N_STATES = 2 * N_POSITIONS

_PACKAGES = ("dm_control", "mujoco")
_INSTALL = "pip install dm-control==1.0.50 mujoco==3.17.0"


def simulate_hopper(n_trajectories: int, n_points: int) -> Tensor:
    r"""Let the hopper fall from random states; nothing drives it.

    The positions of root x and z are drawn uniformly from [0, 0.5], the other five from [-2, 2]
    and the seven velocities from [-5, 5], by ``numpy.random.RandomState(123)``; the global stream
    is not touched. Fewer trajectories are the first ones of more. One point is one step of 5 ms,
    the first point the drawn state.

    Args:
        n_trajectories: Number of trajectories ``N``.
        n_points: Points of each ``T``.

    Returns:
        Positions, then velocities, shape ``(N, T, 14)``, float32.

    Raises:
        ModuleNotFoundError: If dm_control is not installed.
    """
    # Without this, dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    try:
        from dm_control import suite
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Expected dm_control to simulate the hopper, but importing it gave: {error}. Install "
            f"it with `{_INSTALL}`, or copy the file of a machine that has simulated it to "
            "`--data.cache_dir`."
        ) from error
    physics = suite.load("hopper", "stand").physics
    random = np.random.RandomState(SEED)
    states = np.empty((n_trajectories, n_points, N_STATES), dtype=np.float32)
    for trajectory in track(states, "Simulating the hopper"):
        with physics.reset_context():
            physics.data.qpos[:2] = random.uniform(0.0, 0.5, size=2)
            physics.data.qpos[2:] = random.uniform(-2.0, 2.0, size=N_POSITIONS - 2)
            physics.data.qvel[:] = random.uniform(-5.0, 5.0, size=N_POSITIONS)
        for state in trajectory:
            state[:N_POSITIONS] = physics.data.qpos
            state[N_POSITIONS:] = physics.data.qvel
            physics.step()
    return torch.from_numpy(states)


def load_hopper(cache_dir: str | Path, n_trajectories: int, n_points: int) -> Tensor:
    r"""Read trajectories from a file, or simulate them and write it.

    The file's name holds the settings and the versions of dm_control and MuJoCo, between which
    trajectories differ slightly. Where dm_control is not installed, a file of any versions
    is taken, the last by name, and its name printed.

    Args:
        cache_dir: Folder of the file.
        n_trajectories: Number of trajectories ``N``.
        n_points: Points of each ``T``.

    Returns:
        Positions, then velocities, shape ``(N, T, 14)``, float32.

    Raises:
        ModuleNotFoundError: If there is no file and dm_control is not installed.
        OSError: If the file cannot be written.
        ValueError: If the file holds something else.
    """
    settings = f"hopper-{n_trajectories}x{n_points}-seed{SEED}"
    versions = _versions()
    path = Path(cache_dir, f"{settings}-{versions}.pt")
    if versions is None:
        found = sorted(Path(cache_dir).glob(f"{settings}-*.pt"))
        if found:
            path = found[-1]
            rank_zero_info(f"dm_control is not installed; taking {path}.")
    expected = (n_trajectories, n_points, N_STATES)
    states = cached_tensors(
        path, ["states"], lambda: {"states": simulate_hopper(n_trajectories, n_points)}
    )["states"]
    if tuple(states.shape) != expected or not bool(states.isfinite().all()):
        raise ValueError(
            f"Expected finite states of shape {expected} in {path}, but got shape "
            f"{tuple(states.shape)}. Delete the file."
        )
    return states


def _versions() -> str | None:
    try:
        return "-".join(f"{name}{version(name)}" for name in _PACKAGES)
    except PackageNotFoundError:
        return None
