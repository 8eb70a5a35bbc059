"""Distance of a trajectory from a straight line."""

import torch
from torch import Tensor

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.base import Penalty, by_sample


class TrajectoryPolynomial(Penalty):
    r"""Penalty on the distance of four states from a straight line in time (TPR).

    The squared residuals of the states at :math:`t_0`, two sorted uniform times and :math:`t_1`
    from the least-squares line through them, summed over dimensions, averaged over the four and
    over the batch. Nothing is held constant but the times.

    References:
        Huang and Yeh, *Accelerating Continuous Normalizing Flow with Trajectory Polynomial
        Regularization*, AAAI 2021, arXiv:2012.04228.
    """

    n_times = 2

    def value(self, probed: Probed) -> Tensor:
        states = (probed.y_ends[0], *probed.y[:2], probed.y_ends[1])
        y = torch.stack([by_sample(state) for state in states], dim=1)
        y = torch.view_as_real(y).flatten(2) if y.is_complex() else y
        s = y.new_tensor([0.0, *probed.shares[:2], 1.0]) - 0.5
        basis = torch.stack([torch.ones_like(s), s], dim=-1)  # (4, 2)
        # The projection off the line: of full rank, as the ends differ.
        orthonormal = torch.linalg.qr(basis)[0]
        # Not matrix products, whose precision autocast and TF32 lower.
        line = orthonormal[None, ..., None]
        part = (line * y[:, :, None]).sum(1, keepdim=True)
        residual = y - (line * part).sum(2)
        return residual.square().sum(-1).mean()
