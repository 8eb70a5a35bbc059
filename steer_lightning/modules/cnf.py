"""Density estimation with continuous normalizing flows."""

from typing import Any

import torch
from torch import Tensor

from steer_lightning.modules.base import mean_with_nan
from steer_lightning.modules.stochastic import StochasticTaskModule
from steer_lightning.nn import Flow


class CNFModule(StochasticTaskModule):
    r"""Train a flow by maximum likelihood, with RNODE's regularisers if their weights say so.

    .. math:: \mathcal{L} = -\overline{\log p(x)} + w_K \overline{K} + w_J \overline{J}

    A batch is a tensor of points ``(B, *event_shape)``, or a tuple of points and weights
    ``(B,)``. Evaluation logs the weighted mean ``val/nll`` and ``test/nll`` in nats: over
    quadrature points of a known density the exact cross-entropy. ``predict`` gives a dict with
    ``x``, its latent ``z`` and ``log_p``. All of it works under ``inference_mode``.

    Args:
        flow: The flow, a :class:`~steer_lightning.nn.CNF` for instance.
        kinetic_weight: Weight of the kinetic energy :math:`K`, see
            :class:`~steer_lightning.nn.Transport`.
        jacobian_weight: Weight of the Jacobian's squared norm :math:`J`.
        **optimization: See :class:`~steer_lightning.modules.base.TaskModule`.

    Raises:
        ValueError: If a weight is negative.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019; Finlay et al., *How to train your neural ODE*, ICML
        2020; Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.1 and Figures 1, 3.

    Example:
        >>> from steer_lightning.nn import CNF, ConcatSquashField
        >>> module = CNFModule(CNF(ConcatSquashField(2, (16,)), event_shape=(2,)))
        >>> sorted(module.evaluate(torch.zeros(4, 2)))
        ['loss', 'nll']
    """

    metric = "nll"
    stream_name = "flow"

    def __init__(
        self,
        flow: Flow,
        kinetic_weight: float = 0.0,
        jacobian_weight: float = 0.0,
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        if min(kinetic_weight, jacobian_weight) < 0:
            raise ValueError(
                f"Expected weights >= 0, but got kinetic_weight = {kinetic_weight} and "
                f"jacobian_weight = {jacobian_weight}."
            )
        self.flow = flow
        self.weights = {"kinetic": kinetic_weight, "jacobian": jacobian_weight}
        self.add_metrics({self.metric: mean_with_nan()})

    def points(
        self, batch: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Points of a batch, shape ``(B, *event_shape)``, and their weights, shape ``(B,)``."""
        if isinstance(batch, Tensor):
            return batch, None
        return batch[0], batch[1] if len(batch) > 1 else None

    def score(self, log_p: Tensor) -> Tensor:
        """Loss of each sample, as it is reported, from its log-density."""
        return -log_p

    def loss_weight(self, batch: Any) -> Tensor | None:
        """Sum of the weights, if there are any."""
        _, weight = self.points(batch, None)
        return None if weight is None else weight.sum()

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Weighted mean score of a batch."""
        generator = self.noise_stream("evaluate", 0)
        x, weight = self.points(batch, generator)
        score = _mean(self.score(self.flow.log_prob(x, generator=generator)), weight)
        return {"loss": score, self.metric: score}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        generator = self.next_training_stream()
        x, weight = self.points(batch, generator)
        regularize = any(self.weights.values())
        carried = self.flow.transport(x, generator=generator, regularize=regularize)
        loss = score = _mean(self.score(carried.log_p), weight)
        for name, factor in self.weights.items():
            energy = getattr(carried, name)
            if energy is not None:
                mean = _mean(energy, weight)
                loss = loss + factor * mean
                self.log(f"train/{name}", mean)
        if regularize:
            self.log("train/loss", loss)
        self.log(f"train/{self.metric}", score, prog_bar=True)
        return loss if self.rank_share is None else self.rank_share.to(loss) * loss

    def check_batch(self, batch: Any) -> None:
        weight = None if isinstance(batch, Tensor) else self.points(batch, None)[1]
        if weight is None:
            return
        right = weight.is_floating_point() and weight.shape == (len(batch[0]),)
        if not right or bool((weight < 0).any()):
            raise ValueError(
                f"Expected the second tensor of a batch to be weights, floats >= 0 of shape "
                f"({len(batch[0])},), but got {weight.dtype} of shape {tuple(weight.shape)}. Give "
                f"points alone if it holds labels."
            )

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        generator = self.noise_stream("predict", batch_idx)
        x, _ = self.points(batch, generator)
        carried = self.flow.transport(x, generator=generator)
        return {"x": x, "z": carried.z, "log_p": carried.log_p}

    def evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        generator = self.noise_stream(stage, batch_idx)
        x, weight = self.points(batch, generator)
        log_p = self.flow.log_prob(x, generator=generator)
        values = self.score(log_p), 1.0 if weight is None else weight
        self.update_metric(stage, self.metric, *values, prog_bar=True)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the batch, weighted if there are weights; zero where all of them are."""
    if weight is None:
        return values.mean()
    return (weight * values).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
