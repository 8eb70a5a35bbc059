"""An ODE-RNN that predicts each observation from those before it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steer_lightning.nn.fields import autonomous_field, feedforward
from steer_lightning.nn.series import SeriesBatch, keep_times, make_series
from steer_lightning.nn.series.ode_rnn import ODERNN, Posterior


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


class ODERNNForecaster(nn.Module):
    """Unroll forward along a series and predict at each time from what was observed before it.

    The prediction at a time is read off the state on arrival there, before its observation is
    taken in; the first time of a series is no target. A classifier reads the state after the
    observation: that of each time, or the last one.

    Args:
        n_features: Features ``D`` of the series.
        n_states: Width of the state.
        n_hidden: Width of the hidden layers of the gates.
        recognition_hidden: Hidden layers of the field between observations.
        readout_hidden: Hidden layers between state and values.
        max_step: Longest Euler step, as a fraction of a sample's time range.
        vector_field: Field ``f(t, y)`` of the state; if not given, a tanh network of
            ``recognition_hidden`` without time.

    Example:
        >>> t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 2)
        >>> forecaster = ODERNNForecaster(n_features=2)
        >>> forecaster(make_series([t], [x], [x])).mean.shape
        torch.Size([1, 1, 3, 2])
    """

    def __init__(
        self,
        n_features: int,
        n_states: int = 20,
        n_hidden: int = 50,
        recognition_hidden: Sequence[int] = (50, 50),
        readout_hidden: Sequence[int] = (50,),
        max_step: float = 0.02,
        vector_field: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.n_features = n_features
        if vector_field is None:
            vector_field = autonomous_field(n_states, recognition_hidden)
        self.rnn = ODERNN(vector_field, n_features, n_states, n_hidden, max_step)
        self.readout = feedforward([n_states, *readout_hidden, n_features])

    def forward(self, batch: SeriesBatch) -> Forecast:
        """Predict at the times that are observed or asked for."""
        batch = keep_times(batch, batch.observed | batch.asked)
        unroll = self.rnn(batch.times, batch.values, batch.mask, batch.lengths)
        later = batch.target_mask.clone()
        later[:, 0] = 0.0
        return Forecast(
            batch._replace(target_mask=later),
            self.readout(unroll.arrival)[None],
            unroll.departure[None],
            unroll.final.mean[None],
            None,
        )

    def predict_at(self, batch: SeriesBatch, times: Tensor) -> Tensor:
        """Values ``(1, B, G, D)`` at any times, each predicted from what is observed before it.

        ``times`` increase, none before the sample's first one, shape ``(B, G)``; else a
        ``ValueError``. Euler steps end at them too: values differ from those of ``forward`` by
        what the length of steps does. Not differentiable in ``times``.
        """
        if not bool((torch.cat([batch.times[:, :1], times], dim=1).diff(dim=1) >= 0).all()):
            raise ValueError(
                "Expected `times` that increase, none before the first one of its sample."
            )
        own = keep_times(batch, batch.observed | batch.asked).times
        seen = keep_times(batch, batch.observed)
        grids, values, masks = [], [], []
        for t, x, mask, length, wanted in zip(*seen[:3], seen.lengths, times, strict=True):
            grid = torch.unique(torch.cat([t[:length], wanted]))
            place = torch.searchsorted(grid, t[:length])
            blank = x.new_zeros(len(grid), x.shape[1])
            grids.append(grid)
            values.append(blank.index_copy(0, place, x[:length]))
            masks.append(blank.index_copy(0, place, mask[:length]))
        merged = make_series(grids, values, masks)
        ranges = own[:, -1] - own[:, 0]
        unroll = self.rnn(merged.times, merged.values, merged.mask, merged.lengths, ranges)
        place = torch.searchsorted(merged.times, times.contiguous())
        state = unroll.arrival.gather(1, place[..., None].expand(-1, -1, unroll.arrival.shape[2]))
        predicted: Tensor = self.readout(state)
        return predicted[None]
