"""Samples of image flows: grids while training, files in predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from steer_lightning.callbacks.plots.base import EVERY_N_CHECKS, EvaluationPlot, array
from steer_lightning.callbacks.prediction_writer import PredictionWriter
from steer_lightning.nn import Flow
from steer_lightning.utils.seeding import stream


class SampleGrid(EvaluationPlot):
    """Samples of an image flow from one fixed noise, at several temperatures.

    The same noise is carried to images after each check, so that the plots of a run show how
    each image changes. The module must hold a :class:`~steer_lightning.nn.Flow` of images as
    ``flow``.

    Args:
        n_samples: Images in each row.
        temperatures: Factors on the base's standard deviation, one row for each.
        seed: Of the noise, which is the same on every device.
        every_n_checks: See :class:`.EvaluationPlot`.

    Raises:
        ValueError: If a number is not positive.
        TypeError: Before the first batch, if the module holds no flow of images.

    Example:
        >>> SampleGrid(n_samples=4, temperatures=[1.0, 0.7]).temperatures
        (1.0, 0.7)
    """

    name = "samples"

    def __init__(
        self,
        n_samples: int = 10,
        temperatures: Sequence[float] = (1.0, 0.9, 0.8, 0.7),
        seed: int = 0,
        every_n_checks: int = EVERY_N_CHECKS,
    ) -> None:
        super().__init__(every_n_checks)
        if n_samples < 1 or not temperatures or min(temperatures) <= 0:
            raise ValueError(
                f"Expected n_samples >= 1 and temperatures > 0, but got n_samples = {n_samples}, "
                f"temperatures = {tuple(temperatures)}."
            )
        self.n_samples = n_samples
        self.temperatures = tuple(temperatures)
        self.seed = seed

    def check(self, pl_module: LightningModule) -> None:
        flow = getattr(pl_module, "flow", None)
        if not isinstance(flow, Flow) or len(flow.event_shape) != 3:
            raise TypeError(
                f"Expected a module with a flow of images (C, H, W) as `flow`, but got "
                f"{type(pl_module).__name__}. Leave SampleGrid out."
            )

    def rows(self, flow: Flow) -> list[Tensor]:
        """Images at each temperature, shape ``(n_samples, C, H, W)``, in [0, 1]."""
        generator = stream("cpu", "sample grid", self.seed)
        z = torch.randn(self.n_samples, *flow.latent_shape, generator=generator)
        z = z.to(next(flow.parameters()))
        return [flow.inverse(t * z).clamp(0.0, 1.0) for t in self.temperatures]

    def draw(self, pl_module: LightningModule, batch: Any) -> Figure:
        rows = self.rows(pl_module.flow)  # type: ignore[arg-type]
        size = (0.62 * self.n_samples + 0.4, 0.85 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), squeeze=False)[:, 0]
        for axis, temperature, images in zip(axes, self.temperatures, rows, strict=True):
            framed = F.pad(images, (1, 1, 1, 1), value=1.0)
            row = array(torch.cat(list(framed), dim=2).movedim(0, -1))
            axis.imshow(row, "gray", vmin=0, vmax=1)
            axis.set_title(f"temperature {temperature:g}", loc="left", fontsize=8)
            axis.axis("off")
        return figure


class SampleWriter(PredictionWriter):
    """Write the images that ``predict`` returns: a tensor and a grid for each batch.

    As :class:`~steer_lightning.callbacks.PredictionWriter`, to ``samples/``: the ``.pt`` of a
    batch holds the images, ``(B, C, H, W)`` in [0, 1], and a ``.png`` beside it shows them.

    Raises:
        TypeError: If a prediction is no batch of images.
    """

    kind = "samples"

    def write(self, pl_module: LightningModule, prediction: Any, path: Path) -> None:
        if not isinstance(prediction, Tensor) or prediction.ndim != 4:
            raise TypeError(
                f"Expected predictions to be images (B, C, H, W), but "
                f"{type(pl_module).__name__} gave {type(prediction).__name__}. Leave "
                f"SampleWriter out."
            )
        images = prediction.cpu()
        super().write(pl_module, images, path)
        n_columns = max(8, round(len(images) ** 0.5))
        save_image(images, path.with_suffix(".png"), nrow=n_columns)
