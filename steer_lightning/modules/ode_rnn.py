"""ODE-RNNs: predict each observation of an irregular series from those before, or classify it."""

import torch
from torch import Tensor, nn

from steer_lightning.modules.base import LRInterval, OptimizerFactory, SchedulerFactory, adam
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
        noise_std: Standard deviation of the observation noise, in units of the values.
        likelihood_weight: Weight of the likelihood in the loss; zero to classify only, in which
            case nothing is predicted and the readout of values is not trained.
        classifier: Maps states to ``num_classes`` logits; ``None`` if nothing is classified. It
            reads the state after each time's observation, or the last one of a series, as the
            labels of the data are.
        num_classes: Number of classes; with two of them the area under the curve is logged too.
        classification_weight: Weight of the cross-entropy in the loss.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimiser.
        lr_interval: What the schedule counts, ``"epoch"`` or ``"step"``.

    Raises:
        ValueError: If a number is out of range or there is nothing to learn; with the first
            batch, if it breaks the contract or has other features or labels than the model.

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

    def __init__(
        self,
        network: ODERNNForecaster,
        noise_std: float = 0.01,
        likelihood_weight: float = 1.0,
        classifier: nn.Module | None = None,
        num_classes: int = 2,
        classification_weight: float = 1.0,
        optimizer: OptimizerFactory = adam,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: LRInterval = "epoch",
    ) -> None:
        super().__init__(
            network,
            noise_std,
            likelihood_weight,
            classifier,
            num_classes,
            classification_weight,
            optimizer,
            lr_scheduler,
            lr_interval,
        )
        self.save_plain_hyperparameters()

    def forecast(self, batch: SeriesBatch, generator: torch.Generator) -> Forecast:
        forecast: Forecast = self.network(batch)
        return forecast

    def likelihood(self, forecast: Forecast) -> tuple[Tensor, dict[str, Tensor]]:
        (log_likelihood,) = self.log_likelihood(forecast)
        return log_likelihood, {"log_likelihood": log_likelihood}

    def predict_at(self, batch: SeriesBatch, times: Tensor) -> Tensor:
        """Values at any times; see :meth:`ODERNNForecaster.predict_at`."""
        return self.network.predict_at(batch, times)
