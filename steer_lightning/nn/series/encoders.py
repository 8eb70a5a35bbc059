"""Encoders of irregular series: from what was observed to a posterior over the first state."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from steer_lightning.horizon.grid import unroll_order
from steer_lightning.nn.fields import feedforward
from steer_lightning.nn.series import SeriesBatch, keep_times
from steer_lightning.nn.series.ode_rnn import ODERNN, Posterior


class Observations(NamedTuple):
    """The observed times of each sample, padded, along which an encoder unrolls.

    Args:
        times: Times, shape ``(B, K)``; padding repeats the last one.
        values: Values, zero where not observed, shape ``(B, K, D)``.
        mask: One where observed, shape ``(B, K, D)``.
        lengths: Number of times of each sample, shape ``(B,)``.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    lengths: Tensor


def observations(batch: SeriesBatch) -> Observations:
    """Keep the times where something is observed, and the first one of each sample."""
    seen = keep_times(batch, batch.observed)
    return Observations(seen.times, seen.values * seen.mask, seen.mask, seen.lengths)


class ODERNNEncoder(nn.Module):
    """Posterior over the state at each sample's first time, by an ODE-RNN that unrolls back.

    Args:
        vector_field: ``f(t, y)`` of the recognition state.
        n_features: Features ``D`` of the series.
        n_states: Width of the recognition state.
        n_latents: Width ``L`` of the latent state.
        n_hidden: Width of the hidden layer of the gates.
        max_step: Longest Euler step, as a fraction of a sample's time range.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907, Section 3.2.
    """

    def __init__(
        self,
        vector_field: nn.Module,
        n_features: int,
        n_states: int,
        n_latents: int,
        n_hidden: int = 50,
        max_step: float = 0.02,
    ) -> None:
        super().__init__()
        self.rnn = ODERNN(vector_field, n_features, n_states, n_hidden, max_step, reverse=True)
        self.to_latent = feedforward([2 * n_states, 100, 2 * n_latents])

    def forward(self, seen: Observations) -> Posterior:
        posterior = self.rnn(*seen).final
        return _posterior(self.to_latent(torch.cat(posterior, dim=1)))


class RNNEncoder(nn.Module):
    """Posterior over the state at each sample's first time, by a GRU without an ODE.

    It reads values, masks and the time since the observation before, from the last one back.
    """

    def __init__(self, n_features: int, n_states: int, n_latents: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * n_features + 1, n_states, batch_first=True)
        self.to_latent = feedforward([n_states, 50, 2 * n_latents])

    def forward(self, seen: Observations) -> Posterior:
        times, values, mask, lengths = seen
        gaps = torch.cat([times.diff(dim=1), torch.zeros_like(times[:, :1])], dim=1).to(values)
        x = torch.cat([values * mask, mask, gaps[..., None]], dim=2)
        order = unroll_order(lengths, x.shape[1], reverse=True)
        x = x.gather(1, order[..., None].expand_as(x))
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, final = self.gru(packed)
        return _posterior(self.to_latent(final[-1]))


def _posterior(latent: Tensor) -> Posterior:
    """Mean and standard deviation, which is not 0: its divergence from the prior is finite."""
    mean, std = latent.chunk(2, dim=1)
    return Posterior(mean, std.abs().clamp(min=torch.finfo(std.dtype).tiny))
