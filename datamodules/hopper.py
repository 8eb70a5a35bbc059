"""A simulated hopper, seen in part, as a LightningDataModule."""

from typing import Literal

import torch
from torch import Tensor

from datamodules.base import check_at_least, derive_seed, seeded_generator
from datamodules.hopper_simulator import N_STATES, load_hopper
from datamodules.scaling import NormaliseBy, min_max
from datamodules.series import SeriesDataModule, choose_points, full_series
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.utils.checks import check_choice


class MuJoCoHopperDataModule(SeriesDataModule):
    r"""Falls of a simulated hopper: 7 positions and 7 velocities at 100 times, some observed.

    At a point either all of the 14 values are observed or none; there are no labels. All
    trajectories have the same times, the number of a point over the number of points. Values are
    scaled over all points, observed or not.

    - ``task="interpolate"``: of each trajectory, ``observed_fraction`` of the points, chosen at
      random, are observed, and all points are to be predicted.
    - ``task="extrapolate"``: of each trajectory's first part, the share ``window`` of its points,
      ``observed_fraction`` is observed, chosen at random, and the points after that part are to
      be predicted; the unobserved points of the first part are neither.

    Which points are observed is drawn once for each trajectory; the public code of latent ODEs
    draws anew in each epoch. It also simulates 200 points: to interpolate, it cuts 100 of them at
    random (``n_simulated=200``); to extrapolate, it observes the first third of all 200
    (``n_points=200, window=0.33``).

    Trajectories are simulated once, 10,000 of them in about half a minute, and kept in
    ``cache_dir``; this needs dm_control, reading the file does not. They differ slightly between
    versions of MuJoCo.

    Args:
        cache_dir: Folder for the trajectories.
        n_trajectories: Trajectories in all.
        n_points: Points of a trajectory.
        n_simulated: Points that are simulated, of which ``n_points`` in a row are kept, from a
            random start that is keyed by ``seed``; ``None`` simulates those that are kept.
        task: What is observed and what is to be predicted, see above.
        observed_fraction: Share of the points, or of those in the first part, that are observed,
            in (0, 1]; rounded to whole points, at least one.
        window: Share of the points in the first part, in (0, 1), for ``task="extrapolate"``;
            rounded to whole points.
        normalise_by: Whose range scales values: that of the training samples, of all, or as
            released, see :func:`~datamodules.scaling.min_max`; a mean squared error is then four
            times as large, as published ones are.
        seed: Key of the split, the order and the observed points; not of the trajectories.

    Raises:
        ModuleNotFoundError: If there is no file of trajectories and dm_control is not installed.
        OSError: If the file cannot be written.

    References:
        Rubanova et al., *Latent ODEs for irregularly-sampled time series*, NeurIPS 2019,
        arXiv:1907.03907.

    Example:
        >>> data = MuJoCoHopperDataModule(task="extrapolate", observed_fraction=0.3)
        >>> data.n_features, data.n_window, data.n_observed
        (14, 50, 15)
    """

    cache_name = "hopper"
    n_features = N_STATES

    def __init__(
        self,
        cache_dir: str = "data/cache/hopper",
        n_trajectories: int = 10_000,
        n_points: int = 100,
        n_simulated: int | None = None,
        task: Literal["interpolate", "extrapolate"] = "interpolate",
        observed_fraction: float = 0.1,
        window: float = 0.5,
        normalise_by: NormaliseBy = "train",
        batch_size: int = 50,
        eval_batch_size: int | None = 200,
        val_size: int = 800,
        limit_train: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, limit_train, num_workers, seed)
        check_at_least(1, n_trajectories=n_trajectories)
        check_at_least(2, n_points=n_points)
        check_at_least(n_points, n_simulated=n_simulated)
        check_choice("task", task, ("interpolate", "extrapolate"))
        check_choice("normalise_by", normalise_by, ("train", "all", "released"))
        if not 0.0 < observed_fraction <= 1.0:
            raise ValueError(
                f"Expected 0 < observed_fraction <= 1, but got {observed_fraction}. The published "
                "settings are 0.1, 0.2, 0.3 and 0.5."
            )
        n_window = round(window * n_points)
        if not 1 <= n_window < n_points:
            raise ValueError(
                f"Expected `window` to leave at least one point on each side, but got {window} of "
                f"{n_points} points. Set it to the share of the first part, such as 0.5."
            )
        self.cache_dir = cache_dir
        self.n_trajectories = n_trajectories
        self.n_points = n_points
        self.n_simulated = n_points if n_simulated is None else n_simulated
        self.task = task
        self.n_window = n_points if task == "interpolate" else n_window
        self.n_observed = max(1, round(observed_fraction * self.n_window))
        self.normalise_by: NormaliseBy = normalise_by

    def prepare_data(self) -> None:
        load_hopper(self.cache_dir, self.n_trajectories, self.n_simulated)

    def load(self) -> tuple[SeriesBatch, None]:
        states = load_hopper(self.cache_dir, self.n_trajectories, self.n_simulated)
        n, n_points = self.n_trajectories, self.n_points
        starts = torch.randint(
            self.n_simulated - n_points + 1, (n, 1), generator=self._generator("cut")
        )
        states = states[torch.arange(n)[:, None], starts + torch.arange(n_points)]
        observed = torch.zeros(n, n_points, dtype=torch.bool)
        observed[:, : self.n_window] = choose_points(
            n, self.n_window, self.n_observed, self._generator("observed")
        )
        target = torch.ones(n, n_points, dtype=torch.bool)
        if self.task == "extrapolate":
            target[:, : self.n_window] = False
        times = (torch.arange(n_points) / n_points).expand(n, n_points)
        masks = (mask[..., None].expand_as(states) for mask in (observed, target))
        return full_series(times, states, *masks), None

    def scale(self, series: SeriesBatch, train: Tensor) -> SeriesBatch:
        everything = torch.ones((), dtype=torch.bool).expand_as(series.values)
        values = min_max(series.values, everything, train, self.normalise_by)
        return series._replace(values=values * (series.mask | series.target_mask))

    def _generator(self, purpose: str) -> torch.Generator:
        return seeded_generator(derive_seed(self.seed, "hopper"), purpose)
