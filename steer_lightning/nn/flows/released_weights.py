"""Weights trained by the public FFJORD and RNODE code."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from steer_lightning.nn.flows.conv_flow_field import ConvFlowField
from steer_lightning.nn.flows.multiscale import MultiScaleCNF
from steer_lightning.utils.io import load_plain

_WEIGHT = re.compile(
    r"transforms\.(\d+)\.chain\.(\d+)\.(?:odefunc\.)+diffeq\.layers\.(\d+)\._layer\.(weight|bias)"
)
_END_TIME = re.compile(r"transforms\.(\d+)\.chain\.(\d+)\.sqrt_end_time")
_WITHOUT_WEIGHTS = re.compile(r".*(\._num_evals|\.integration_times)")


def read_released_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the ``state_dict`` of a checkpoint of the public code, without running code from it.

    The file holds it by itself, or under ``"state_dict"`` beside whatever else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such checkpoint, or asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = load_plain(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"Expected {path} to be a checkpoint of tensors and plain values, but reading it "
            f"without running its code failed: {error}. Get the file from its source again."
        ) from error
    found = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"Expected {path} to hold a `state_dict` of tensors, but got {type(found).__name__}."
        )
    return dict(found)


def load_released_weights(flow: MultiScaleCNF, state_dict: Mapping[str, Tensor]) -> None:
    r"""Copy weights of the public FFJORD and RNODE code into a flow of the same architecture.

    Their model is a list ``transforms`` of scales, each with a list ``chain`` of layers. A block
    has its convolutions at ``odefunc.diffeq.layers.<i>._layer`` (or ``odefunc.odefunc...`` where
    it was trained with regularisers), the time channel first, and its end time as
    ``sqrt_end_time``. Blocks are matched by order, convolutions by place. Their data sits at
    ``t = 0``, so that the flow must have ``data_at="t0"`` and ``t0 = 0``.

    Args:
        flow: A flow of :class:`~steer_lightning.nn.ConvFlowField` s.
        state_dict: Tensors by name, with or without the prefix ``module.`` of a model that was
            trained in parallel.

    Raises:
        ValueError: If the flow is not one that such weights fit: another end of the data, end
            time, number of blocks, or shape of a convolution; or if there are names of another
            model. The flow stays as it was.

    References:
        github.com/rtqichen/ffjord and github.com/cfinlay/ffjord-rnode, the models trained on
        images.
    """
    convolutions, end_times = _sort(state_dict)
    if len(convolutions) != len(flow.blocks):
        raise ValueError(
            f"Expected weights of {len(flow.blocks)} blocks for a flow of images "
            f"{flow.event_shape}, but got {len(convolutions)}. Build the flow with the image "
            f"size, `n_blocks` and `min_size` that they were trained with."
        )
    matched = list(zip(flow.blocks, sorted(convolutions.items()), strict=True))
    for block, (place, layers) in matched:  # all of them before anything is copied
        field, horizon = block.vector_field, block.horizon
        if not isinstance(field, ConvFlowField) or block.data_at != "t0" or horizon.t0 != 0.0:
            raise ValueError(
                f"Expected a flow of ConvFlowField, with data_at='t0' and t0 = 0 as the weights "
                f"were trained, but got {type(field).__name__}, data_at={block.data_at!r} and "
                f"t_span = ({horizon.t0:g}, {horizon.t1:g})."
            )
        expected = {key: tuple(x.shape) for key, x in field.layers.state_dict().items()}
        got = {key: tuple(x.shape) for key, x in sorted(layers.items())}
        if got != expected:
            raise ValueError(
                f"Expected the convolutions of the block at {place} to have the shapes "
                f"{expected}, but got {got}. Set the field's `hidden` to the widths that they "
                f"were trained with."
            )
        end_time = end_times.get(place, horizon.t1)
        if horizon.learned_t1 is None and abs(end_time - horizon.t1) > 1e-6 * horizon.t1:
            raise ValueError(
                f"Expected t1 = {end_time:g}, the end time that the block at {place} was trained "
                f"with, but the flow has {horizon.t1:g}. Set `t_span`, or `learn_t1: true`."
            )
    for block, (place, layers) in matched:
        cast(ConvFlowField, block.vector_field).layers.load_state_dict(layers)
        if block.horizon.learned_t1 is not None and place in end_times:
            nn.init.constant_(block.horizon.learned_t1, end_times[place])


Place = tuple[int, int]


def _sort(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[Place, dict[str, Tensor]], dict[Place, float]]:
    """Convolutions and end times by the place of their block, scale and position in it."""
    convolutions: dict[Place, dict[str, Tensor]] = {}
    end_times: dict[Place, float] = {}
    unknown = []
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.")
        if match := _WEIGHT.fullmatch(name):
            scale, position, layer, kind = match.groups()
            layers = convolutions.setdefault((int(scale), int(position)), {})
            layers[f"{layer}.{kind}"] = tensor
        elif match := _END_TIME.fullmatch(name):
            end_times[int(match[1]), int(match[2])] = float(tensor) ** 2
        elif not _WITHOUT_WEIGHTS.fullmatch(name):
            unknown.append(key)
    if unknown or not convolutions:
        raise ValueError(
            f"Expected names such as "
            f"'transforms.0.chain.1.odefunc.diffeq.layers.0._layer.weight', but got "
            f"{unknown[:3] or 'none'}. Only the multi-scale models of images with `concat` layers "
            f"can be imported."
        )
    return convolutions, end_times
