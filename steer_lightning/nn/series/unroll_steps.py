"""The steps that the samples of a batch unroll, listed without those of samples that are done."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from steer_lightning.nn.series.unroll_plan import UnrollPlan


class UnrollSteps(NamedTuple):
    """Steps and updates of all samples, ``A`` and ``N`` of them, in the order of the unroll.

    Samples with longer unrolls come first, so that those who still unroll are the first ones.

    Args:
        active: How many samples unroll each step.
        updating: How many of them observe something at its end.
        rows: Which ones these are, shape ``(N,)``.
        t: Times at the start of each step, shape ``(A,)``.
        dt: Lengths of the steps, in the dtype of the observations, shape ``(A, 1)``.
        observations: What is observed, shape ``(N, D)``.
        meets: Number of the step that meets each observation of each sample, from one; zero in
            the padding, shape ``(B, K)``.
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
    """List the steps of a plan.

    Args:
        plan: Of the unroll.
        observations: Shape ``(B, K, D)``.
        observed: Whether there is something to take in at each time, shape ``(B, K)``.
    """
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
