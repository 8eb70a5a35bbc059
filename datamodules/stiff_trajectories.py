"""Trajectories of stiff systems, to learn their fields from."""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from datamodules.base import Split, TensorData, TensorDataModule, check_at_least
from datamodules.stiff import DTYPES, OneTrajectory, StiffBatch, StiffTrajectory
from datamodules.stiff_systems import StiffSystem, lienard, robertson
from steer_lightning.utils.checks import check_choice

Array = NDArray[np.float64]

SYSTEMS = {"robertson": robertson, "van_der_pol": lienard}
FIRST_TIME = 1e-5  # of Robertson's problem, behind 0


class StiffSystemDataModule(TensorDataModule):
    r"""The trajectory of a stiff system, in pieces to train on and whole to test on.

    A training batch is a :class:`StiffBatch` of pieces that begin at one reference point and end
    at a later one, each with a length of its own. Validation, test and predict each yield one
    :class:`StiffTrajectory`, the same one, at times of its own. States are divided by the size
    of each component; times are the system's. The reference is scipy's Radau at a relative
    tolerance of 1e-9, in float64.

    ``"robertson"`` runs from ``t = 0`` to 1e5, with points that lie equally in :math:`\log t`
    from 1e-5 on. ``"van_der_pol"`` is the oscillator with :math:`\mu = 1000` in Liénard's
    coordinates over ``[0, 2000]``, see :class:`~datamodules.stiff_systems.LienardField`; its
    points lie equally along the curve :math:`(t, y)`, both scaled, and so densely in its jumps.

    Args:
        system: Its name.
        n_points: Reference points to train on, the start not counted.
        gaps: Length of a piece, in gaps between neighbouring points.
        repeats: How often each piece comes in an epoch.
        n_test: Points of the test trajectory, the start not counted.
        dtype: Precision of the batches.

    References:
        Kim et al., *Stiff neural ordinary differential equations*, Chaos 31, 2021; Hairer and
        Wanner, *Solving ODEs II*, Section IV.1.

    Example:
        >>> data = StiffSystemDataModule("robertson", n_points=20, batch_size=8)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.t_end.shape, batch.y_end.shape
        (torch.Size([8]), torch.Size([8, 3]))
    """

    def __init__(
        self,
        system: Literal["robertson", "van_der_pol"] = "robertson",
        n_points: int = 50,
        gaps: int = 1,
        repeats: int = 1,
        n_test: int = 200,
        batch_size: int = 50,
        dtype: Literal["float32", "float64"] = "float64",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        check_choice("system", system, SYSTEMS)
        check_choice("dtype", dtype, DTYPES)
        check_at_least(2, n_points=n_points, n_test=n_test)
        check_at_least(1, gaps=gaps, repeats=repeats)
        if gaps > n_points:
            raise ValueError(
                f"Expected pieces of at most n_points = {n_points} gaps, but got gaps = {gaps}. "
                "Shorten the pieces or raise `n_points`."
            )
        self.system = system
        self.n_points = n_points
        self.gaps = gaps
        self.repeats = repeats
        self.n_test = n_test
        self.dtype = dtype

    def build(self, split: Split) -> TensorData[Any]:
        n_points = self.n_points if split == "train" else self.n_test
        exact = trajectory(self.system, n_points)
        whole = StiffTrajectory(*(x.to(DTYPES[self.dtype]) for x in exact))
        rounded = whole.t.diff() / exact.t.diff() - 1.0
        if float(rounded.abs().max()) > 0.1:
            raise ValueError(
                f"Expected times that {self.dtype} tells apart, but of the {n_points} gaps of "
                f"{self.system!r} it changes one by {float(rounded.abs().max()):.0%}. Use "
                f"dtype='float64', or fewer points."
            )
        if split != "train":
            return OneTrajectory(whole)
        first = torch.arange(n_points + 1 - self.gaps).repeat(self.repeats)
        last = first + self.gaps
        t, y = whole
        return TensorData(StiffBatch(t[first], y[first], t[last], y[last]))


def trajectory(name: str, n_points: int) -> StiffTrajectory:
    """The start of a system and ``n_points`` points behind it, in float64, states scaled."""
    system, solution = SYSTEMS[name](), solved(name)
    t0, t1 = system.t_span
    if name == "robertson":
        t = np.concatenate([[t0], np.geomspace(FIRST_TIME, t1, n_points)])
    else:
        t = along_the_curve(solution, n_points, np.array(system.scale))
    y = solution.sol(t).T / system.scale
    return StiffTrajectory(torch.from_numpy(t), torch.from_numpy(y))


@cache
def solved(name: str) -> Any:
    """The solution that the data is taken from, with a dense output."""
    system = SYSTEMS[name]()
    return radau(system, 1e-9, 1e-11 * np.array(system.scale), dense_output=True)


def radau(system: StiffSystem, rtol: float, atol: Any, dense_output: bool = False) -> Any:
    """The solution of a system by scipy's Radau."""

    @torch.no_grad()
    def field(t: float, y: Array) -> Array:
        time = torch.tensor(t, dtype=torch.float64)
        slope: Tensor = system.vector_field(time, torch.from_numpy(y)[None])
        return np.asarray(slope[0])

    span, y0 = system.t_span, system.y0
    return solve_ivp(field, span, y0, "Radau", rtol=rtol, atol=atol, dense_output=dense_output)


def along_the_curve(solution: Any, n_points: int, scale: Array) -> Array:
    """``n_points + 1`` times that part the curve of scaled times and states into equal lengths."""
    t = solution.t
    curve = np.column_stack([t / (t[-1] - t[0]), solution.y.T / scale])
    lengths = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    walked = np.concatenate([[0.0], np.cumsum(lengths)])
    return np.interp(np.linspace(0.0, walked[-1], n_points + 1), walked, t)
