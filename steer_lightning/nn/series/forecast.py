"""What networks for irregular series give, whatever they are made of."""

from typing import NamedTuple

from torch import Tensor

from steer_lightning.nn.series import SeriesBatch
from steer_lightning.nn.series.ode_rnn import Posterior


class Forecast(NamedTuple):
    """Predictions of a batch, in ``S`` draws.

    Args:
        batch: The series at the times predicted at, with the targets that count, ``T`` times.
        mean: Predicted values, shape ``(S, B, T, D)``.
        along: State at each time, which a classifier of times reads, shape ``(S, B, T, L)``.
        whole: State of each series, which a classifier of series reads, shape ``(S, B, L)``.
        posterior: Posterior of the latent state, if there is one.
    """

    batch: SeriesBatch
    mean: Tensor
    along: Tensor
    whole: Tensor
    posterior: Posterior | None
