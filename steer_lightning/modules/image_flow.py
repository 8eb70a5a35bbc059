"""Density estimation of images with continuous normalizing flows."""

from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from steer_lightning.modules.base import mean_with_nan
from steer_lightning.modules.cnf import CNFModule
from steer_lightning.nn import Flow
from steer_lightning.nn.likelihood import bits_per_dim


class ImageFlowModule(CNFModule):
    r"""Train a flow of images in bits per dimension.

    A batch is a tensor of grey values, whole numbers 0 to 255 as floats or bytes, shape
    ``(B, C, H, W)``, or a tuple that begins with one. They are dequantised,
    :math:`x = (g + u) / 256`, with uniform :math:`u` in training and validation. The loss is bits
    per dimension plus the weighted regularisers of :class:`CNFModule`.

    Testing logs both conventions in use. ``test/bits_per_dim`` is the mean over ``test_draws``
    uniform dequantisations of every image, a bound on the code length, with
    ``test/bits_per_dim_stderr``, the standard error of that mean due to the draws of ``u`` and of
    Hutchinson's noise (not to the choice of test images). ``test/bits_per_dim_center`` has
    :math:`u = 1/2` throughout, which is no bound and usually lower. ``predict`` gives one sample
    of the flow for each image of the batch, shape ``(B, C, H, W)``, in [0, 1].

    Args:
        flow: A flow on the unit cube, :class:`~steer_lightning.nn.MultiScaleCNF`.
        test_draws: Dequantisations of each test image, at least two.
        temperature: Factor on the base's standard deviation in ``predict``.
        **regularization: Weights of the regularisers, optimiser and schedule, see
            :class:`CNFModule`.

    Raises:
        ValueError: If the flow is not one of images or ``test_draws < 2``; in the first batch, if
            its images are no grey values or of another shape.

    References:
        Theis et al., *A note on the evaluation of generative models*, ICLR 2016; Finlay et al.,
        *How to train your neural ODE*, ICML 2020; Ghosh et al., *STEER*, NeurIPS 2020,
        arXiv:2006.10711, Section 4.1 and Table 1.

    Example:
        >>> from steer_lightning.nn import ConvFlowField, MultiScaleCNF
        >>> flow = MultiScaleCNF((1, 4, 4), lambda channels: ConvFlowField(channels, (4,)))
        >>> module = ImageFlowModule(flow)
        >>> sorted(module.evaluate(torch.full((2, 1, 4, 4), 128.0)))
        ['bits_per_dim', 'loss']
    """

    metric = "bits_per_dim"

    def __init__(
        self, flow: Flow, test_draws: int = 3, temperature: float = 1.0, **regularization: Any
    ) -> None:
        super().__init__(flow, **regularization)
        if len(flow.event_shape) != 3:
            raise ValueError(
                f"Expected a flow of images (C, H, W), but got one of {flow.event_shape}. "
                f"CNFModule trains flows of points."
            )
        if test_draws < 2:
            raise ValueError(
                f"Expected `test_draws` >= 2, so that there is a standard error, but got "
                f"{test_draws}."
            )
        self.temperature = temperature
        self.center = mean_with_nan()
        self.draws: Any = torch.nn.ModuleList(mean_with_nan() for _ in range(test_draws))

    def points(self, batch: Any, generator: torch.Generator | None) -> tuple[Tensor, None]:
        grey = _images(batch)
        u = torch.rand(grey.shape, generator=generator, dtype=grey.dtype, device=grey.device)
        return (grey + u) / 256.0, None

    def loss_weight(self, batch: Any) -> None:
        """Images have no weights."""

    def score(self, log_p: Tensor) -> Tensor:
        return bits_per_dim(log_p, prod(self.flow.event_shape))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        grey = _images(batch)
        generator = self.noise_stream("test center", batch_idx)
        center = self.flow.log_prob((grey + 0.5) / 256.0, generator=generator)
        self.center.update(self.score(center))
        self.log("test/bits_per_dim_center", self.center, batch_size=len(grey))
        for draw, metric in enumerate(self.draws):
            generator = self.noise_stream("test", batch_idx, draw)
            x, _ = self.points(batch, generator)
            metric.update(self.score(self.flow.log_prob(x, generator=generator)))

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        for metric in (self.center, *self.draws):
            metric.reset()

    def on_test_epoch_end(self) -> None:
        means = torch.stack([metric.compute() for metric in self.draws])
        # Equal on all ranks already: the metrics are reduced exactly.
        self.log("test/bits_per_dim", means.mean(), sync_dist=True)
        self.log("test/bits_per_dim_stderr", means.std() / len(means) ** 0.5, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
        generator = self.noise_stream("samples", batch_idx)
        return self.flow.sample(len(_images(batch)), generator, self.temperature).clamp(0.0, 1.0)

    def check_batch(self, batch: Any) -> None:
        grey = _images(batch)
        low, high = float(grey.min()), float(grey.max())
        if low < 0.0 or high > 255.0 or bool((grey != grey.round()).any()):
            raise ValueError(
                f"Expected images of grey values, whole numbers 0 to 255, but got values from "
                f"{low:g} to {high:g}. The datamodules of images give them with "
                f"`--data.pixels=uint8`."
            )


def _images(batch: Any) -> Tensor:
    grey = cast(Tensor, batch if isinstance(batch, Tensor) else batch[0])
    return grey if grey.is_floating_point() else grey.to(torch.get_default_dtype())
