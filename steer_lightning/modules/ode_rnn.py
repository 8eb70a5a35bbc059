"""ODE-RNNs on irregular series."""

from typing import Any

import torch
from torch import Tensor

from steer_lightning.modules.series import SeriesModule
from steer_lightning.nn import ODERNNForecaster
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.nn.series.forecaster import Forecast


class ODERNNModule(SeriesModule):
    r"""Train an ODE-RNN to predict the values of irregular series from those before.

    .. math:: \mathcal{L} = -w_L\, \overline{\log p(x_i \mid x_1 .. x_{i-1})} + w_C\, \mathrm{CE}

    A batch is a :class:`~steer_lightning.nn.series.SeriesBatch`. What is asked for past the last
    observation is predicted from all of them; nothing predicted is fed back. Logged are
    ``log_likelihood``, in nats per value, ``mse`` over targets and, with a classifier,
    ``cross_entropy``, ``accuracy`` and for two classes ``auc``; all under ``train/``, ``val/`` and
    ``test/``, but ``auc``, which a batch is too small for.

    Args:
        network: The ODE-RNN.
        **series: Noise of the observations, classifier, weights of the likelihood and of the
            cross-entropy, optimiser and schedule, see
            :class:`~steer_lightning.modules.series.SeriesModule`. The classifier reads the state
            after each time's observation, or the last one of a series.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907; Ghosh et al., *STEER*,
        NeurIPS 2020, arXiv:2006.10711, Section 4.2 and Tables 2 to 4.

    Example:
        >>> from steer_lightning.nn.series import make_series
        >>> t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 2)
        >>> module = ODERNNModule(ODERNNForecaster(n_features=2))
        >>> sorted(module.evaluate(make_series([t], [x], [x])))
        ['log_likelihood', 'loss', 'mse']
    """

    network: ODERNNForecaster

    def __init__(self, network: ODERNNForecaster, **series: Any) -> None:
        super().__init__(network, **series)

    def forecast(self, batch: SeriesBatch, generator: torch.Generator) -> Forecast:
        return self.network(batch)

    def likelihood(self, forecast: Forecast) -> tuple[Tensor, dict[str, Tensor]]:
        (log_likelihood,) = self.log_likelihood(forecast)
        return log_likelihood, {"log_likelihood": log_likelihood}

    def predict_at(self, batch: SeriesBatch, times: Tensor) -> Tensor:
        """Values at any times; see :meth:`.ODERNNForecaster.predict_at`."""
        return self.network.predict_at(batch, times)
