"""Noisy sine waves with random frequencies, seen in part, as a LightningDataModule."""

import math
from typing import Literal

import torch
from torch import Tensor

from datamodules.base import check_at_least, seeded_generator
from datamodules.series import SeriesDataModule, choose_points, full_series
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.utils.checks import check_choice

_ATTEMPTS = 100


class PeriodicDataModule(SeriesDataModule):
    r"""Sine waves of random frequency and offset at irregular times, half of the points observed.

    .. math::
        y(t) = z_0 + \sin(2 \pi f t) \;(+\; t) + \text{noise}, \qquad
        f \sim \mathcal{U}(0.4,\, 0.8)

    The first time is 0, the others are uniform on ``[0, t_end]``; neither times nor values are
    scaled, and there are no labels. Of each trajectory ``n_observed`` points, chosen at random,
    are observed, and all are to be predicted, with their noise. The first point has no noise.

    Args:
        n_trajectories: Trajectories in all.
        n_points: Points of a trajectory.
        n_observed: How many of them are observed.
        t_end: End of the time range.
        shared_times: All trajectories have the same times, as in the public code of latent ODEs,
            or each its own.
        with_trend: Add ``t``, as the STEER paper does; the public code of latent ODEs does not.
        offset: ``"normal"`` draws ``z_0`` from N(0, 1), as the STEER paper says; ``"released"``
            from N(1, 0.1^2), as in the public code of latent ODEs.
        noise: ``"gaussian"`` has mean 0 and the standard deviation ``noise_scale``; ``"uniform"``
            lies between 0 and ``noise_scale``, as in the public code of latent ODEs.
        noise_scale: Size of the noise.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.5.
        Rubanova et al., *Latent ODEs for irregularly-sampled time series*, NeurIPS 2019,
        arXiv:1907.03907.

    Example:
        >>> data = PeriodicDataModule()
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.values.shape, int(batch.mask[0].sum()), int(batch.target_mask[0].sum())
        (torch.Size([50, 100, 1]), 50, 100)
    """

    n_features = 1

    def __init__(
        self,
        n_trajectories: int = 1000,
        n_points: int = 100,
        n_observed: int = 50,
        t_end: float = 5.0,
        shared_times: bool = True,
        with_trend: bool = True,
        offset: Literal["normal", "released"] = "normal",
        noise: Literal["gaussian", "uniform"] = "gaussian",
        noise_scale: float = 0.01,
        batch_size: int = 50,
        eval_batch_size: int | None = 200,
        val_size: int = 80,
        limit_train: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, limit_train, num_workers, seed)
        check_at_least(1, n_trajectories=n_trajectories, n_observed=n_observed)
        check_at_least(2, n_points=n_points)
        if n_observed > n_points:
            raise ValueError(
                f"Expected `n_observed` to be at most `n_points`, {n_points}, but got "
                f"{n_observed}. Lower `n_observed`."
            )
        check_choice("offset", offset, ("normal", "released"))
        check_choice("noise", noise, ("gaussian", "uniform"))
        if not (0.0 < t_end < math.inf and 0.0 <= noise_scale < math.inf):
            raise ValueError(
                "Expected `t_end` to be positive and `noise_scale` at least 0, both finite, but "
                f"got {t_end} and {noise_scale}. The paper's setting is 5 and 0.01."
            )
        self.n_trajectories = n_trajectories
        self.n_points = n_points
        self.n_observed = n_observed
        self.t_end = t_end
        self.shared_times = shared_times
        self.with_trend = with_trend
        self.offset = offset
        self.noise = noise
        self.noise_scale = noise_scale

    def load(self) -> tuple[SeriesBatch, None]:
        # Each kind of number has a random stream of its own.
        shape = (self.n_trajectories, self.n_points)
        times = self._times(1 if self.shared_times else shape[0]).expand(shape)
        frequency = 0.4 + 0.4 * torch.rand(shape[0], 1, generator=self._generator("frequency"))
        offset = torch.randn(shape[0], 1, generator=self._generator("offset"))
        if self.offset == "released":
            offset = 1.0 + 0.1 * offset
        draw = torch.randn if self.noise == "gaussian" else torch.rand
        noise = self.noise_scale * draw(shape, generator=self._generator("noise"))
        noise[:, 0] = 0.0
        values = offset + torch.sin(2.0 * math.pi * frequency * times) + noise
        if self.with_trend:
            values = values + times
        observed = choose_points(*shape, self.n_observed, self._generator("observed"))
        targets = torch.ones(*shape, 1, dtype=torch.bool)
        return full_series(times, values[..., None], observed[..., None], targets), None

    def _times(self, n_grids: int) -> Tensor:
        """Draw grids, shape ``(n_grids, n_points)``; one with two equal times is drawn again."""
        generator = self._generator("times")

        def draw(n: int) -> Tensor:
            u = torch.rand(n, self.n_points - 1, generator=generator, dtype=torch.float64)
            return torch.cat([torch.zeros(n, 1), (self.t_end * u).float().sort().values], dim=1)

        times = draw(n_grids)
        for _ in range(_ATTEMPTS):
            again = (times.diff(dim=1) <= 0).any(1)
            if not bool(again.any()):
                return times
            times[again] = draw(int(again.sum()))
        raise ValueError(
            f"Expected {self.n_points} times on [0, {self.t_end:g}] that differ in float32, but "
            f"after {_ATTEMPTS} attempts some are equal. Lower `n_points` or raise `t_end`."
        )

    def _generator(self, purpose: str) -> torch.Generator:
        return seeded_generator(self.seed, f"periodic/{purpose}")
