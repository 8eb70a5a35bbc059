"""The Euler steps of series with time grids of their own, all samples of a batch side by side."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.horizon.grid import unroll_order


class UnrollPlan(NamedTuple):
    r"""The Euler steps of every sample, side by side.

    In step ``m`` sample ``b`` goes from ``t[b, m]`` by ``dt[b, m]`` and, if ``arrived[b, m]`` is
    not -1, meets its observation of that number. Samples that are done stand still.

    Args:
        t: Actual times at the start of each step, shape ``(B, M)``.
        dt: Lengths of the steps, negative when unrolling back, shape ``(B, M)``.
        arrived: Number of the observation at the end of each step, or -1, shape ``(B, M)``.
    """

    t: Tensor
    dt: Tensor
    arrived: Tensor


def plan_unroll(
    times: Tensor,
    lengths: Tensor,
    max_step: Tensor | float,
    rates: Tensor | None = None,
    reverse: bool = False,
) -> UnrollPlan:
    """Plan the steps from observation to observation of each sample.

    A gap is cut into equal steps no longer than ``max_step``. The first step has length zero and
    meets the first observation. With ``rates`` each interval is stretched, by steps as many as
    without, and the next one starts at its own observation again, unperturbed.

    Args:
        times: Observation times, strictly increasing within each length, shape ``(B, K)``.
        lengths: Number of observations of each sample, at least one, shape ``(B,)``.
        max_step: Longest step before it is stretched, shape ``()`` or ``(B,)``.
        rates: Ratio of stretched to nominal length of the interval that the unroll takes as its
            i-th, shape ``(B, K - 1)``.
        reverse: Unroll from the last observation to the first.

    Example:
        >>> plan = plan_unroll(torch.tensor([[0.0, 0.1, 0.5]]), torch.tensor([3]), max_step=0.2)
        >>> plan.dt
        tensor([[0.0000, 0.1000, 0.2000, 0.2000]])
        >>> plan.arrived
        tensor([[ 0,  1, -1,  2]])
    """
    n_times = times.shape[1]
    number = unroll_order(lengths, n_times, reverse)
    valid = torch.arange(n_times, device=times.device) < lengths[:, None]
    times = times.gather(1, number)
    gaps = torch.cat([torch.zeros_like(times[:, :1]), times.diff(dim=1)], dim=1)
    longest = torch.as_tensor(max_step, dtype=times.dtype, device=times.device).reshape(-1, 1)
    # The gap of 0.1 and 0.3 is 0.2 to rounding, and is to be one step of 0.2.
    rounding = 4.0 * torch.finfo(times.dtype).eps * times.abs().amax(1, keepdim=True)
    rounding = torch.minimum(rounding, 0.01 * longest)  # of times far from zero it is large
    pieces = torch.ceil((gaps.abs() - rounding) / longest).clamp(min=1).long() * valid
    ends = pieces.cumsum(1)
    step = torch.arange(int(ends[:, -1].max()), device=times.device).repeat(len(times), 1)
    interval = torch.searchsorted(ends, step, right=True)
    active = interval < n_times
    interval = interval.clamp(max=n_times - 1)
    n_pieces = pieces.gather(1, interval).clamp(min=1)
    if rates is not None:
        gaps = gaps * torch.cat([torch.ones_like(gaps[:, :1]), rates], dim=1)
    dt = gaps.gather(1, interval) / n_pieces * active
    last = ends.gather(1, interval) - 1
    start = times.gather(1, torch.where(active, interval - 1, interval).clamp(min=0))
    t = start + (step - (last - n_pieces + 1)) * dt
    arrived = torch.where((step == last) & active, number.gather(1, interval), -1)
    return UnrollPlan(t, dt, arrived)


class UnrollSteps(NamedTuple):
    """Steps and updates of all samples, ``A`` and ``N`` of them, in the order of the unroll.

    Samples with longer unrolls come first, so that those who still unroll are the first ones.

    Args:
        active: How many samples unroll each step, and
        updating: how many of them observe something at its end.
        rows: Which ones these are, shape ``(N,)``.
        t: Times at the start of each step, shape ``(A,)``.
        dt: Lengths of the steps, in the dtype of the observations, shape ``(A, 1)``.
        observations: What is observed, shape ``(N, D)``.
        meets: Number of the step that meets each observation of each sample, from one; zero in the
            padding, shape ``(B, K)``.
    """

    active: list[int]
    updating: list[int]
    rows: Tensor
    t: Tensor
    dt: Tensor
    observations: Tensor
    meets: Tensor

    def last(self, states: Tensor) -> Tensor:
        """The state of each sample at the end of its unroll, of those in all steps."""
        return states.index_select(0, self.meets.amax(1) - 1)

    def at_observations(self, states: Tensor) -> Tensor:
        """Those of steps that meet an observation, shape ``(B, K, R)``; zero in the padding."""
        picked = F.pad(states, (0, 0, 1, 0)).index_select(0, self.meets.flatten())
        return picked.view(*self.meets.shape, -1)


def list_steps(plan: UnrollPlan, observations: Tensor, observed: Tensor) -> UnrollSteps:
    """List the steps of a plan, for ``observed`` of shape ``(B, K)`` among the observations."""
    n_steps = plan.dt.shape[1]
    number = torch.arange(1, n_steps + 1, device=plan.dt.device)
    length = (number * (plan.arrived >= 0)).amax(1)
    order = length.argsort(descending=True, stable=True)
    unrolls = number[:, None] <= length[order]
    step, rank = unrolls.nonzero(as_tuple=True)
    sample = order[rank]
    t, dt, arrived = (part[sample, step] for part in plan)
    arrives = arrived >= 0
    meets = arrived.new_zeros(observed.shape)
    meeting = arrives.nonzero()[:, 0]
    meets[sample[meeting], arrived[meeting]] = meeting + 1
    updates = (arrives & observed[sample, arrived]).nonzero()[:, 0]
    return UnrollSteps(
        unrolls.sum(1).tolist(),
        torch.bincount(step[updates], minlength=n_steps).tolist(),
        rank[updates],
        t,
        dt[:, None].to(observations.dtype),
        observations[sample[updates], arrived[updates]],
        meets,
    )
