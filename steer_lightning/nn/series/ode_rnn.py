"""Recurrent networks whose state follows an ODE between observations."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from steer_lightning.horizon import GridHorizon
from steer_lightning.nn.fields import MLPField, feedforward, is_changed
from steer_lightning.nn.series.fused_unroll import Network, fused_unroll
from steer_lightning.nn.series.unroll import UnrollPlan, list_steps, plan_unroll
from steer_lightning.solvers import SolveStats
from steer_lightning.utils.autograd import transforms_active
from steer_lightning.utils.checks import check_state


class Posterior(NamedTuple):
    """Mean and standard deviation of a state, each of shape ``(B, R)``."""

    mean: Tensor
    std: Tensor


class Unroll(NamedTuple):
    """Posterior and means of an ODE-RNN along the times of each sample.

    Args:
        final: Posterior at the end of the unroll.
        arrival: Mean on arrival at each time, before its observation is taken in, shape
            ``(B, K, R)``; zero in the padding.
        departure: Mean at each time after its observation is taken in, likewise.
    """

    final: Posterior
    arrival: Tensor
    departure: Tensor


class PosteriorGRU(nn.Module):
    r"""A gated update of mean and standard deviation by an observation.

    Args:
        n_inputs: Features of an observation, values and masks together.
        n_states: Width ``R`` of mean and of standard deviation.
        n_hidden: Width of the hidden layer of each gate.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907, Section 3.1.
    """

    def __init__(self, n_inputs: int, n_states: int, n_hidden: int) -> None:
        super().__init__()
        n = 2 * n_states + n_inputs
        self.update_gate = feedforward([n, n_hidden, n_states])
        self.reset_gate = feedforward([n, n_hidden, n_states])
        self.new_state = feedforward([n, n_hidden, 2 * n_states])

    def forward(
        self, posterior: Posterior, x: Tensor, observes: Tensor | None = None
    ) -> Posterior:
        """Update a posterior by observations ``x``, shape ``(B, n_inputs)``.

        Of samples where ``observes``, ``(B, 1)``, is true; of all if it is not given.
        """
        mean, std = posterior
        joint = torch.cat([mean, std, x], dim=1)
        keep = torch.sigmoid(self.update_gate(joint)).to(mean.dtype)
        reset = torch.sigmoid(self.reset_gate(joint))
        candidate = self.new_state(torch.cat([mean * reset, std * reset, x], dim=1))
        # Cast because lerp refuses the two dtypes of autocast.
        new_mean, new_std = candidate.to(mean.dtype).chunk(2, dim=1)
        if observes is not None:
            keep = torch.where(observes, keep, 1.0)
        return Posterior(torch.lerp(new_mean, mean, keep), torch.lerp(new_std.abs(), std, keep))

    def networks(self) -> tuple[Network, Network]:
        """The state's share in the gates, side by side, and in the new state."""
        (first, last), (first_reset, last_reset), (first_new, last_new) = self._layers()
        n = last_new.out_features
        gates = (
            torch.cat([first.weight[:, :n], first_reset.weight[:, :n]]),
            torch.block_diag(last.weight, last_reset.weight),  # type: ignore[no-untyped-call]
            torch.cat([last.bias, last_reset.bias]),
        )
        return gates, (first_new.weight[:, :n], last_new.weight, last_new.bias)

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The share of observations and biases in their first layers, ``x`` as in `forward`."""
        first, first_reset, first_new = layers = [first for first, _ in self._layers()]
        n = first.in_features - x.shape[1]
        weight = torch.cat([layer.weight[:, n:] for layer in layers])
        bias = torch.cat([first.bias, first_reset.bias, first_new.bias])
        gates, new = F.linear(x, weight, bias).tensor_split([2 * first.out_features], dim=1)
        return gates, new

    def _layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """First and last layer of each network."""
        networks = (self.update_gate, self.reset_gate, self.new_state)
        return [cast(tuple[nn.Linear, nn.Linear], (net[0], net[2])) for net in networks]


class ODERNN(nn.Module):
    r"""A recurrent network that follows an ODE from observation to observation.

    Every sample unrolls along its own observations, all samples of a batch side by side: the
    number of steps is that of the longest unroll, and not that of the union of all times. Between
    observations the mean follows Euler steps no longer than ``max_step`` times the sample's own
    time range; at an observation a :class:`PosteriorGRU` updates mean and standard deviation.
    STEER stretches each interval, and the next one starts from its own observation time again.

    If the field is an :class:`~steer_lightning.nn.MLPField` with tanh, the unroll is one operation
    with a gradient of its own: the same values and gradients in less time, differentiable once.
    With another field, a hook on a part of it, or autocast, autograd follows it step by step.

    Args:
        vector_field: ``f(t, y)`` of the mean, for ``t`` of shape ``(B,)`` and ``y`` of
            ``(B, n_states)``.
        n_features: Features ``D`` of the series.
        n_states: Width ``R`` of the state.
        n_hidden: Width of the hidden layer of each gate.
        max_step: Longest Euler step, as a fraction of a sample's time range.
        reverse: Unroll from the last observation to the first.

    Attributes:
        stats: Work done since its last reset; read by ``NFEMonitor``.

    Raises:
        ValueError: If ``max_step`` is no fraction.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907, Algorithm 1; Ghosh et al.,
        *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.2.

    Example:
        >>> from steer_lightning.nn import MLPField
        >>> rnn = ODERNN(MLPField(4, (8,), time_dependent=False), n_features=2, n_states=4)
        >>> times, values = torch.tensor([[0.0, 0.3, 1.0]]), torch.ones(1, 3, 2)
        >>> unroll = rnn(times, values, torch.ones(1, 3, 2), torch.tensor([3]))
        >>> unroll.final.mean.shape, unroll.arrival.shape
        (torch.Size([1, 4]), torch.Size([1, 3, 4]))
    """

    def __init__(
        self,
        vector_field: nn.Module,
        n_features: int,
        n_states: int,
        n_hidden: int = 50,
        max_step: float = 0.02,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 < max_step <= 1.0:
            raise ValueError(
                f"Expected `max_step`, a fraction of the time range, in (0, 1], but got "
                f"{max_step}."
            )
        self.vector_field = vector_field
        self.gru = PosteriorGRU(2 * n_features, n_states, n_hidden)
        self.horizon = GridHorizon()
        self.n_states = n_states
        self.max_step = max_step
        self.reverse = reverse
        self.stats = SolveStats()

    def forward(
        self,
        times: Tensor,
        values: Tensor,
        mask: Tensor,
        lengths: Tensor,
        ranges: Tensor | None = None,
    ) -> Unroll:
        """Unroll along the observations.

        Args:
            times: Times of each sample, strictly increasing within its length, then repeating the
                last one, shape ``(B, K)``.
            values: Values, shape ``(B, K, D)``; anything finite where nothing is observed.
            mask: One where observed, shape ``(B, K, D)``; a time where nothing is observed is
                unrolled through without an update.
            lengths: Number of times of each sample, shape ``(B,)``.
            ranges: What ``max_step`` is a fraction of, shape ``(B,)``; where it is zero or not
                given, the range of the times.

        Raises:
            TypeError: If the values, whose dtype the state has, are neither float32 nor float64.
        """
        check_state(values.new_zeros(len(times), self.n_states))
        plan = self.plan(times, lengths, ranges)
        observations = torch.cat([values * mask, mask], dim=2)
        n_steps = plan.dt.shape[1]
        self.stats.count("nfe", n_steps)
        self.stats.count("accepted", n_steps)
        unroll = self._fused_unroll if self._is_plain(observations) else self._unroll
        return unroll(observations, plan)

    def _unroll(self, observations: Tensor, plan: UnrollPlan) -> Unroll:
        posterior = Posterior(*observations.new_zeros(2, len(observations), self.n_states))
        # A step that arrives at no observation has the one in front of all, which is zero.
        padded, place = F.pad(observations, (0, 0, 1, 0)), (plan.arrived + 1)[..., None]
        inputs = padded.gather(1, place.expand(-1, -1, padded.shape[2]))
        inputs = inputs.transpose(0, 1)
        observed = _observed(inputs)
        # Cut once, because a view at each step takes time; lists, so that a GPU is not waited for.
        starts = plan.t.t().to(observations.dtype).unbind(0)
        observes = observed[..., None].unbind(0)
        dts = plan.dt.t()[..., None].to(observations.dtype).unbind(0)
        some_observe, all_observe = observed.any(1).tolist(), observed.all(1).tolist()
        arrivals, departures = [], []
        for m, dt in enumerate(dts):
            slope = self.vector_field(starts[m], posterior.mean).to(dt.dtype)
            posterior = posterior._replace(mean=torch.addcmul(posterior.mean, dt, slope))
            arrivals.append(posterior.mean)
            if some_observe[m]:
                x, some = inputs[m], None if all_observe[m] else observes[m]
                posterior = self.gru(posterior, x, some)
            departures.append(posterior.mean)
        blank = padded.new_zeros(*padded.shape[:2], self.n_states)
        arrival, departure = (
            blank.scatter(1, place.expand(-1, -1, self.n_states), torch.stack(means, dim=1))[:, 1:]
            for means in (arrivals, departures)
        )
        return Unroll(posterior, arrival, departure)

    def _fused_unroll(self, observations: Tensor, plan: UnrollPlan) -> Unroll:
        steps = list_steps(plan, observations, _observed(observations))
        field, offset = _field_network(cast(MLPField, self.vector_field), steps.t)
        networks = (field, *self.gru.networks())
        offsets = (offset, *self.gru.offsets(steps.observations))
        arrivals, states = fused_unroll(steps, networks, offsets)
        arrival, departure = map(steps.at_observations, (arrivals, states[:, : self.n_states]))
        return Unroll(Posterior(*steps.last(states).chunk(2, dim=1)), arrival, departure)

    def _is_plain(self, like: Tensor) -> bool:
        """Whether formulas over the weights give all that the networks do with a tensor."""
        networks = (self.vector_field, self.gru)
        gates = (self.gru.update_gate, self.gru.reset_gate, self.gru.new_state)
        return (
            type(self.vector_field) is MLPField
            and type(self.gru) is PosteriorGRU
            and not any(is_changed(part) for net in networks for part in net.modules())
            and all(map(_is_tanh_network, (self.vector_field.network, *gates)))
            and {len(gate) for gate in gates} == {3}
            and {p.dtype for net in networks for p in net.parameters()} == {like.dtype}
            and not torch.is_autocast_enabled(like.device.type)
            and not transforms_active()
            and forward_ad._current_level < 0
        )

    def plan(self, times: Tensor, lengths: Tensor, ranges: Tensor | None = None) -> UnrollPlan:
        """The steps of every sample, stretched by the end times in force."""
        span = times[:, -1] - times[:, 0]
        if ranges is not None:
            span = torch.where(ranges > 0, ranges, span)
        longest = torch.where(span > 0, self.max_step * span, 1.0)
        rates = self.horizon.rates(times, lengths, self.reverse)
        return plan_unroll(times, lengths, longest, rates, self.reverse)


def _is_tanh_network(network: nn.Module) -> bool:
    """Whether a network is linear layers, all with biases, and tanh between them."""
    kinds = [type(part) for part in network.children()]
    return (
        type(network) is nn.Sequential
        and kinds == [nn.Linear, *[nn.Tanh, nn.Linear] * (len(kinds) // 2)]
        and all(part.bias is not None for part in list(network)[::2])
    )


def _observed(observations: Tensor) -> Tensor:
    """Whether anything is observed, by the masks in the second half of the last axis."""
    return observations[..., observations.shape[2] // 2 :].any(2)


def _field_network(field: MLPField, t: Tensor) -> tuple[Network, Tensor]:
    """The state's share in a tanh field, and what times, shape ``(A,)``, and bias add to it."""
    first, *later = cast(list[nn.Linear], list(field.network)[::2])
    network = tuple(part for layer in later for part in (layer.weight, layer.bias))
    if field.autonomous:
        return (first.weight, *network), first.bias.expand(len(t), -1)
    offset = torch.addcmul(first.bias, t[:, None].to(first.weight), first.weight[:, 0])
    return (first.weight[:, 1:], *network), offset
