"""Latent ODEs on irregular series."""

from typing import Any, Literal

import torch
from torch import Tensor

from steer_lightning.modules.series import SeriesModule
from steer_lightning.nn import LatentODE
from steer_lightning.nn.likelihood import importance_bound, standard_normal_kl
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.nn.series.forecaster import Forecast
from steer_lightning.utils.checks import check_choice


class LatentODEModule(SeriesModule):
    r"""Train a latent ODE on irregular series by a bound on their evidence.

    .. math::
        \mathcal{L} = -w_L \log \frac{1}{S} \sum_s
            \exp\bigl(\overline{\log p(x \mid z_s)} - w_{KL}\, \overline{KL}\bigr)
            + w_C\, \mathrm{CE}

    As in the published model, the log-likelihood is a mean over the values of a series and not
    their sum, and the divergence a mean over latent dimensions: the bound is one in nats per value
    with a divergence that weighs more than in a strict bound. The divergence's weight is zero for
    ``kl_wait_epochs``, then :math:`1 - \gamma^{n}` after ``n`` further epochs.

    A batch is a :class:`~steer_lightning.nn.series.SeriesBatch`. Logged are ``log_likelihood`` and
    ``kl``, ``mse`` over targets and draws and, with a classifier, ``cross_entropy``, ``accuracy``
    and for two classes ``auc`` of the probabilities' mean over the draws; all under ``train/``,
    ``val/`` and ``test/``, but ``auc``, which a batch is too small for; and ``train/kl_weight``.

    Args:
        network: The latent ODE.
        n_draws: Draws ``S`` of the latent state, in training and evaluation.
        kl_wait_epochs: Epochs before the divergence counts.
        kl_gamma: Factor by which its weight comes nearer to one in each epoch, in [0, 1).
        bound_of: What the logarithm over the draws is taken of: each ``"series"``, or the
            ``"batch"``, whose mean over its series comes first, as in the public code.
        **series: Noise of the observations, classifier, weights of the bound and of the
            cross-entropy, optimiser and schedule, see
            :class:`~steer_lightning.modules.series.SeriesModule`. The classifier reads the latent
            state at each time, or the first one of a series.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907; Ghosh et al., *STEER*,
        NeurIPS 2020, arXiv:2006.10711, Section 4.2 and Tables 2 to 4.

    Example:
        >>> from steer_lightning.nn.series import make_series
        >>> t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 2)
        >>> module = LatentODEModule(LatentODE(n_features=2, n_latents=4))
        >>> sorted(module.evaluate(make_series([t], [x], [x])))
        ['kl', 'kl_weight', 'log_likelihood', 'loss', 'mse']
    """

    network: LatentODE
    logged = ("log_likelihood", "kl")

    def __init__(
        self,
        network: LatentODE,
        n_draws: int = 3,
        kl_wait_epochs: int = 10,
        kl_gamma: float = 0.99,
        bound_of: Literal["series", "batch"] = "series",
        **series: Any,
    ) -> None:
        super().__init__(network, **series)
        if n_draws < 1 or kl_wait_epochs < 0 or not 0.0 <= kl_gamma < 1.0:
            raise ValueError(
                f"Expected n_draws >= 1, kl_wait_epochs >= 0 and kl_gamma in [0, 1), but got "
                f"{n_draws}, {kl_wait_epochs} and {kl_gamma}."
            )
        check_choice("bound_of", bound_of, ("series", "batch"))
        self.n_draws = n_draws
        self.kl_wait_epochs = kl_wait_epochs
        self.kl_gamma = kl_gamma
        self.bound_of = bound_of

    @property
    def kl_weight(self) -> float:
        """Weight of the divergence in this epoch."""
        return 1.0 - self.kl_gamma ** max(0, self.current_epoch - self.kl_wait_epochs)

    def forecast(self, batch: SeriesBatch, generator: torch.Generator) -> Forecast:
        return self.network(batch, self.n_draws, generator)

    def likelihood(self, forecast: Forecast) -> tuple[Tensor, dict[str, Tensor]]:
        assert forecast.posterior is not None
        log_likelihood = self.log_likelihood(forecast)
        kl = standard_normal_kl(*forecast.posterior).mean(1)
        weight = kl.new_tensor(self.kl_weight)
        if self.bound_of == "batch":
            bound = importance_bound(log_likelihood.mean(1, True), kl.mean(0, True), weight)
        else:
            bound = importance_bound(log_likelihood, kl, weight)
        return bound, {"log_likelihood": log_likelihood.mean(0), "kl": kl, "kl_weight": weight}

    def predict_at(self, batch: SeriesBatch, times: Tensor) -> Tensor:
        """Values at any times, in ``n_draws`` draws; see :meth:`.LatentODE.predict_at`."""
        generator = self.noise_stream("predict at", 0)
        return self.network.predict_at(batch, times, self.n_draws, generator)
