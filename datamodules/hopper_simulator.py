"""Trajectories of the hopper of dm_control, simulated with MuJoCo and kept in a file."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor

from steer_lightning.utils.io import load_plain, replacing

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

    Returns:
        Positions, then velocities, shape ``(n_trajectories, n_points, 14)``, float32.

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
    r"""Read trajectories from a file, or simulate them and write it; a broken one is made again.

    The file's name holds the settings and the versions of dm_control and MuJoCo, between which
    trajectories differ slightly. Where dm_control is not installed, a file of any versions
    is taken, the last by name, and its name printed. Nothing in a file is run.

    Returns and raises what :func:`simulate_hopper` does, and ``OSError`` if the file cannot be
    written.
    """
    settings = f"hopper-{n_trajectories}x{n_points}-seed{SEED}"
    try:
        versions = "-".join(f"{name}{version(name)}" for name in _PACKAGES)
        path = Path(cache_dir, f"{settings}-{versions}.pt")
    except PackageNotFoundError:
        path = max(Path(cache_dir).glob(f"{settings}-*.pt"), default=Path(cache_dir, settings))
        if path.is_file():
            rank_zero_info(f"dm_control is not installed; taking {path}.")
    if path.is_file():
        reason = "it does not hold finite states of that shape"
        try:
            states: Tensor = load_plain(path)["states"]
            if states.shape == (n_trajectories, n_points, N_STATES) and states.isfinite().all():
                return states
        except Exception as error:  # Broken bytes may raise nearly anything.
            reason = repr(error)
        rank_zero_info(f"The cache {path} is broken and is made again: {reason}.")
    states = simulate_hopper(n_trajectories, n_points)
    try:
        with replacing(path) as temporary:
            torch.save({"states": states}, temporary)
    except (OSError, RuntimeError) as error:  # Torch reports a full disk as a RuntimeError.
        raise OSError(
            f"Expected to write the cache {path}, but got: {error} Set `--data.cache_dir` to a "
            "folder that can be written to and has room."
        ) from error
    return states
