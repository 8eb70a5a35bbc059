"""Latent ODEs: an encoder that walks back, a decoder that is one smooth solve."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from steer_lightning.batch import SeriesBatch
from steer_lightning.functional.walk import walking_order
from steer_lightning.horizon import GridHorizon
from steer_lightning.nn.ode_rnn import ODERNN, Belief, tanh_network
from steer_lightning.solvers import SolveStats
from steer_lightning.solvers.dense import DenseSolver


class Observations(NamedTuple):
    """What an encoder walks along: the observed times of each sample, padded.

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
    """Keep the times where something is observed, and the first one of each sample.

    Example:
        >>> from steer_lightning.batch import make_series
        >>> t, values = torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, 1)
        >>> batch = make_series([t], [values], [torch.tensor([[0.0], [0.0], [1.0]])])
        >>> observations(batch).times
        tensor([[0., 2.]])
    """
    keep = batch.mask.any(2)
    keep[:, 0] = True
    lengths = keep.sum(1)
    # A stable sort puts what is kept in front, in the order of time.
    order = (~keep).byte().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    place = torch.arange(order.shape[1], device=order.device)
    padding = place >= lengths[:, None]
    order = torch.where(padding, order.gather(1, lengths[:, None] - 1), order)
    wide = order[..., None].expand(-1, -1, batch.values.shape[2])
    mask = batch.mask.gather(1, wide).masked_fill(padding[..., None], 0.0)
    values = batch.values.gather(1, wide) * mask
    return Observations(batch.times.gather(1, order), values, mask, lengths)


class ODERNNEncoder(nn.Module):
    """Belief about the state at each sample's first time, by an ODE-RNN that walks back.

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
        self.to_latent = tanh_network([2 * n_states, 100, 2 * n_latents])

    def forward(self, seen: Observations) -> Belief:
        """Mean and deviation of the latent state, each ``(B, L)``."""
        belief, _ = self.rnn(*seen)
        mean, std = self.to_latent(torch.cat(belief, dim=1)).chunk(2, dim=1)
        return Belief(mean, std.abs())


class RNNEncoder(nn.Module):
    """Belief about the state at each sample's first time, by a GRU without an ODE.

    It reads values, masks and the time since the observation before, from the last one back.

    Args:
        n_features: Features ``D`` of the series.
        n_states: Width of the GRU's state.
        n_latents: Width ``L`` of the latent state.
    """

    def __init__(self, n_features: int, n_states: int, n_latents: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * n_features + 1, n_states, batch_first=True)
        self.to_latent = tanh_network([n_states, 50, 2 * n_latents])

    def forward(self, seen: Observations) -> Belief:
        """Mean and deviation of the latent state, each ``(B, L)``."""
        times, values, mask, lengths = seen
        gaps = torch.cat([times.diff(dim=1), torch.zeros_like(times[:, :1])], dim=1).to(values)
        x = torch.cat([values * mask, mask, gaps[..., None]], dim=2)
        order = walking_order(lengths, x.shape[1], reverse=True)
        x = x.gather(1, order[..., None].expand_as(x))
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, final = self.gru(packed)
        mean, std = self.to_latent(final[-1]).chunk(2, dim=1)
        return Belief(mean, std.abs())


class LatentDecoder(nn.Module):
    r"""Follow a latent state through each sample's own times, in one smooth solve for all.

    The field ignores time, so that samples may start together: the solve runs over the longest
    elapsed time, and each sample is read where its own times are. STEER stretches each interval
    between neighbouring times; the stretched intervals add up to new times to be read. Samples
    share the steps of the solve, and so influence each other within its tolerance.

    Args:
        vector_field: ``f(t, z)`` that ignores ``t``.
        solver: Adaptive integrator with dense output; ``rtol=1e-3, atol=1e-4`` if not given.

    Attributes:
        stats: Work done since its last reset; read by ``NFEMonitor``.

    Raises:
        ValueError: If the field does not say that it ignores time (``autonomous = True``).

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907; Ghosh et al., *STEER*,
        NeurIPS 2020, arXiv:2006.10711, Section 4.2.

    Example:
        >>> from steer_lightning.nn import MLPField
        >>> decoder = LatentDecoder(MLPField(4, (8,), time_dependent=False))
        >>> times = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.3, 0.3]])
        >>> decoder(torch.zeros(5, 2, 4), times, torch.tensor([3, 2])).shape
        torch.Size([5, 2, 3, 4])
    """

    def __init__(self, vector_field: nn.Module, solver: DenseSolver | None = None) -> None:
        super().__init__()
        if not getattr(vector_field, "autonomous", False):
            raise ValueError(
                "Expected a vector field that ignores time, with `autonomous = True`, so that "
                "samples with other times can share a solve. MLPField has `time_dependent=False`."
            )
        self.vector_field = vector_field
        self.solver = DenseSolver() if solver is None else solver
        self.horizon = GridHorizon()
        self.stats = SolveStats()

    def forward(self, z0: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Follow ``z0`` from the first time of each sample.

        Args:
            z0: ``S`` states of each sample at its first time, shape ``(S, B, L)``.
            times: Times of each sample, increasing, padded by the last one, shape ``(B, T)``.
            lengths: Number of times of each sample, shape ``(B,)``.

        Returns:
            States at every time, shape ``(S, B, T, L)``; in the padding that at the last time.
        """
        elapsed = times - times[:, :1]
        rates = self.horizon.rates(times, lengths)
        if rates is not None:
            stretched = (rates * times.diff(dim=1)).cumsum(1)
            elapsed = torch.cat([elapsed[:, :1], stretched], dim=1)
        end = elapsed.detach().max()
        n_draws, n_samples, n_latents = z0.shape
        if not bool(end > 0):  # one time for each sample
            return z0[:, :, None].expand(-1, -1, times.shape[1], -1)
        solution = self.solver.solve(
            self.vector_field,
            z0.flatten(0, 1),
            torch.stack([torch.zeros_like(end), end]),
            stats=self.stats,
        )
        z = solution.at(elapsed.repeat(n_draws, 1))
        return z.view(n_draws, n_samples, times.shape[1], n_latents)
