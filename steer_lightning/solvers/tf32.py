"""Warn of tolerances that a GPU's TF32 cannot hold."""

import warnings
from functools import cache
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from steer_lightning.utils.problem import VectorField, first_part

# Half a unit in the last of ten bits of mantissa, relative to the number.
TF32_ROUNDING: Final = 2.0**-11


class TF32Check:
    """Warns of TF32 in the first solve on a GPU; a solver that adapts its steps has one.

    Torch lets convolutions round to TF32 by default, and matrix products where somebody chose it.
    Settings changed later, convolutions in a field that is no ``nn.Module``, and other fields of
    the same solver are not seen.
    """

    def __init__(self) -> None:
        self._done = False

    def __call__(self, vector_field: VectorField, y0: Any, rtol: float) -> None:
        if self._done or not (part := first_part(y0)).is_cuda:
            return
        self._done = True
        # Autocast rounds products by a choice of its own.
        autocast = torch.is_autocast_enabled("cuda")
        if part.dtype != torch.float32 or autocast or rtol >= TF32_ROUNDING:
            return
        cudnn: Any = torch.backends.cudnn
        convolves = isinstance(vector_field, nn.Module) and any(
            isinstance(m, _ConvNd) for m in vector_field.modules()
        )
        matmul, conv = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
        rounded = ["matrix products"] * (matmul == "tf32")
        rounded += ["convolutions"] * (conv == "tf32" and convolves)
        if rounded:
            _warn_once(" and ".join(rounded), rtol)


@cache
def _warn_once(rounded: str, rtol: float) -> None:
    """Once in a process, however many blocks have the same tolerance."""
    warnings.warn(
        f"Expected a vector field as exact as rtol = {rtol:g} asks for, but its {rounded} round "
        f"to TF32, with a relative error of up to {TF32_ROUNDING:.1g}. An adaptive method takes "
        f"that for its own error: it takes more steps, and the result is no better. Compute in "
        f"float32 (`--tf32 false`; in Python torch.backends.cuda.matmul.fp32_precision = 'ieee' "
        f"and torch.backends.cudnn.conv.fp32_precision = 'ieee'), or set rtol to 1e-3 or more.",
        stacklevel=2,
    )
