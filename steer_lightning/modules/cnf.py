"""Density estimation with continuous normalizing flows."""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from steer_lightning.modules.base import (
    OptimizerFactory,
    SchedulerFactory,
    StageMetrics,
    TaskModule,
    adam,
)
from steer_lightning.nn import CNF


class CNFModule(TaskModule):
    r"""Train a :class:`~steer_lightning.nn.CNF` by maximum likelihood.

    A batch is a tensor of points ``(B, *event_shape)``, or a tuple of points and weights
    ``(B,)``. Evaluation logs the weighted mean ``val/nll`` and ``test/nll`` in nats: over
    quadrature points of a known density the exact cross-entropy. ``predict`` gives a dict with
    ``x``, its latent ``z`` and ``log_p``. All of it works under ``inference_mode``.

    Args:
        flow: The flow.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimiser.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019; Ghosh et al., *STEER*, NeurIPS 2020,
        arXiv:2006.10711, Section 4.1 and Figures 1 and 3.

    Example:
        >>> import torch
        >>> from steer_lightning.nn import CNF, ConcatSquashField
        >>> module = CNFModule(CNF(ConcatSquashField(2, (16,)), event_shape=(2,)))
        >>> sorted(module.evaluate(torch.zeros(4, 2)))
        ['loss', 'nll']
    """

    def __init__(
        self,
        flow: CNF,
        optimizer: OptimizerFactory = adam,
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.save_plain_hyperparameters()
        self.flow = flow
        self.nll = StageMetrics(MeanMetric)

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Weighted mean negative log-likelihood of a batch, in nats."""
        x, weight = _points_and_weights(batch)
        log_p = self.flow.log_prob(x)
        nll = -log_p.mean() if weight is None else -(weight * log_p).sum() / weight.sum()
        return {"loss": nll, "nll": nll}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Negative log-likelihood of the batch."""
        nll = self.evaluate(batch)["loss"]
        self.log("train/nll", nll, prog_bar=True)
        return nll

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add to ``val/nll``."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add to ``test/nll``."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Latents and log-densities of the batch."""
        x, _ = _points_and_weights(batch)
        z, _ = self.flow(x)
        return {"x": x, "z": z, "log_p": self.flow.log_prob(x)}

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        x, weight = _points_and_weights(batch)
        metric = self.nll[stage]
        metric.update(-self.flow.log_prob(x), 1.0 if weight is None else weight)
        self.log(f"{stage}/nll", metric, prog_bar=True)


def _points_and_weights(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    return batch[0], batch[1] if len(batch) > 1 else None
