"""Multi-scale flows of images: stacked blocks, squeezing, factoring out."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_lightning.nn.flows.cnf import CNF
from steer_lightning.nn.flows.conv_flow_field import ConvFlowField
from steer_lightning.nn.flows.flow import Flow, Transport, check_shape
from steer_lightning.nn.flows.transforms import Logit
from steer_lightning.nn.trace import Noise, TraceEstimator
from steer_lightning.solvers import Solver


class MultiScaleCNF(Flow):
    r"""FFJORD's multi-scale flow of images, from the unit cube to a standard normal.

    A logit transform, then scales: each but the last is blocks, a 2x2 squeeze, blocks, and half of
    the channels leave as latents; the last is blocks alone. Each block is a
    :class:`~steer_lightning.nn.CNF` with an end time of its own, at path
    ``scales.<i>.before.<j>`` or ``scales.<i>.after.<j>``.

    Latents are flat, ``(B, D)``: those that left first come first.

    Args:
        event_shape: ``(C, H, W)`` of an image.
        vector_field: Makes the field of a block from its number of channels.
        n_blocks: Blocks in each stack.
        min_size: Scales are added while height and width are at least this.
        alpha: Of the logit transform, in ``[0, 0.5)``; ``None`` for data that is unbounded
            already.
        solver: Of all blocks, as all that follows; see :class:`~steer_lightning.nn.CNF`.
        eval_solver: Integrator in eval mode.
        t_span: ``(t0, t1)`` of each block; STEER moves ``t1``.
        data_at: End of the span nearer the data; ``"t0"`` as in the public FFJORD and RNODE code.
        learn_t1: Make each block's ``t1`` a parameter.
        t1_range: Smallest and largest value of a learned ``t1``.
        eval_end_time: Where the moved end of each block lies in eval mode.
        trace_estimator: ``"hutchinson"``, or ``"exact"`` for tiny images.
        noise: Distribution of Hutchinson's probes.
        compile: Compile the field with its divergence, once for all blocks of a shape.

    Raises:
        ValueError: If ``event_shape`` is no image, its sides cannot be halved as often as there
            are scales, or an argument is out of range.

    References:
        Grathwohl et al., *FFJORD*, ICLR 2019; Finlay et al., *How to train your neural ODE*, ICML
        2020; Dinh et al., *Real NVP*, ICLR 2017, Section 3.6.

    Example:
        >>> flow = MultiScaleCNF((1, 8, 8), lambda channels: ConvFlowField(channels, (4,)))
        >>> len(flow.blocks), flow.log_prob(torch.full((2, 1, 8, 8), 0.5)).shape
        (6, torch.Size([2]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        vector_field: Callable[[int], nn.Module] = ConvFlowField,
        n_blocks: int = 2,
        min_size: int = 4,
        alpha: float | None = 1e-5,
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
        t_span: Sequence[float] = (0.0, 1.0),
        data_at: Literal["t0", "t1"] = "t0",
        learn_t1: bool = False,
        t1_range: Sequence[float] | None = None,
        eval_end_time: float | None = None,
        trace_estimator: TraceEstimator = "hutchinson",
        noise: Noise = "gaussian",
        compile: bool = False,
    ) -> None:
        super().__init__(tuple(event_shape))
        if n_blocks < 1:
            raise ValueError(f"Expected `n_blocks` >= 1, but got {n_blocks}.")
        self.logit = None if alpha is None else Logit(alpha)

        settings = (
            solver, eval_solver, t_span, data_at, learn_t1, t1_range, eval_end_time,
            trace_estimator, noise, compile,
        )  # fmt: skip

        def stack(*shape: int) -> nn.ModuleList:
            blocks = (CNF(vector_field(shape[0]), shape, *settings) for _ in range(n_blocks))
            return nn.ModuleList(blocks)

        *squeezed, last = shapes = scale_shapes(self.event_shape, min_size)
        self.latent_shapes = [(2 * c, h // 2, w // 2) for c, h, w in squeezed] + [last]
        self.scales: Any = nn.ModuleList()
        for c, h, w in shapes:
            before = stack(c, h, w)
            after = nn.ModuleList() if (c, h, w) == last else stack(4 * c, h // 2, w // 2)
            self.scales.append(nn.ModuleDict({"before": before, "after": after}))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (prod(self.event_shape),)

    @property
    def blocks(self) -> list[CNF]:
        """Every block, in the order from data to base."""
        return [block for scale in self.scales for part in scale.values() for block in part]

    def transport(
        self, x: Tensor, *, generator: torch.Generator | None = None, regularize: bool = False
    ) -> Transport:
        check_shape("images", x, self.event_shape)
        zero = x.new_zeros(len(x))
        y, log_det = (x, zero) if self.logit is None else self.logit(x)
        so_far = Transport(y, log_det, *((zero, zero) if regularize else ()))

        def through(blocks: Sequence[CNF], so_far: Transport) -> Transport:
            for block in blocks:
                carried = block.transport(so_far.z, generator=generator, regularize=regularize)
                so_far = carried.after(so_far)
            return so_far

        *scales, last = self.scales
        latents = []
        for scale in scales:
            so_far = through(scale["before"], so_far)
            so_far = through(scale["after"], so_far._replace(z=F.pixel_unshuffle(so_far.z, 2)))
            kept, latent = so_far.z.chunk(2, dim=1)
            latents.append(latent)
            so_far = so_far._replace(z=kept)
        so_far = through(last["before"], so_far)
        latents.append(so_far.z)
        return so_far._replace(z=torch.cat([latent.flatten(1) for latent in latents], dim=1))

    def inverse(self, z: Tensor) -> Tensor:
        check_shape("latents", z, self.latent_shape)
        shapes = self.latent_shapes
        parts = torch.split(z, [prod(shape) for shape in shapes], dim=1)
        latents = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

        def back(blocks: Sequence[CNF], y: Tensor) -> Tensor:
            for block in reversed(blocks):
                y = block.inverse(y)
            return y

        *scales, last = self.scales
        y = back(last["before"], latents.pop())
        for scale in reversed(scales):
            y = back(scale["after"], torch.cat([y, latents.pop()], dim=1))
            y = back(scale["before"], F.pixel_shuffle(y, 2))
        return y if self.logit is None else self.logit.inverse(y)


def scale_shapes(event_shape: tuple[int, ...], min_size: int) -> list[tuple[int, int, int]]:
    """Shape ``(C, H, W)`` of the images that enter each scale."""
    if len(event_shape) != 3 or min(event_shape) < 1 or min_size < 2:
        raise ValueError(
            f"Expected `event_shape` = (C, H, W) and `min_size` >= 2, but got {event_shape} and "
            f"{min_size}."
        )
    c, h, w = event_shape
    if min(h, w) < min_size:
        raise ValueError(
            f"Expected images of at least `min_size` = {min_size} on each side, but got {h} x {w}."
        )
    shapes = [(c, h, w)]
    while min(h // 2, w // 2) >= min_size:
        if h % 2 or w % 2:
            raise ValueError(
                f"Expected sides that can be halved at each scale but the last, but "
                f"{event_shape[1]} x {event_shape[2]} comes to {h} x {w} at scale {len(shapes)}. "
                f"Use another image size, or raise `min_size` to more than {min(h, w) // 2}."
            )
        c, h, w = 2 * c, h // 2, w // 2
        shapes.append((c, h, w))
    return shapes
