"""Warn of tolerances that TF32 or autocast cannot hold."""

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
    """Warns of autocast, and of TF32 in the first solve on a GPU; adaptive solvers have one.

    Torch lets convolutions round to TF32 by default, and matrix products where somebody chose it.
    Settings changed later, convolutions in a field that is no ``nn.Module``, and other fields of
    the same solver are not seen.
    """

    def __init__(self) -> None:
        self._done = False

    def __call__(self, vector_field: VectorField, y0: Any, rtol: float) -> None:
        device = (part := first_part(y0)).device.type
        if torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
            if rtol < 0.5 * torch.finfo(low).eps:
                _warn_once(f"autocast rounds to {low}", 0.5 * torch.finfo(low).eps, rtol)
            return
        if self._done or not part.is_cuda:
            return
        self._done = True
        if part.dtype != torch.float32 or rtol >= TF32_ROUNDING:
            return
        cudnn: Any = torch.backends.cudnn
        convolves = isinstance(vector_field, nn.Module) and any(
            isinstance(m, _ConvNd) for m in vector_field.modules()
        )
        matmul, conv = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
        rounded = ["matrix products"] * (matmul == "tf32")
        rounded += ["convolutions"] * (conv == "tf32" and convolves)
        if rounded:
            _warn_once(f"its {' and '.join(rounded)} round to TF32", TF32_ROUNDING, rtol)


@cache
def _warn_once(rounded: str, error: float, rtol: float) -> None:
    """Once in a process, however many blocks have the same tolerance."""
    warnings.warn(
        f"Expected a vector field as exact as rtol = {rtol:g} asks for, but {rounded}, with a "
        f"relative error of up to {error:.1g}. An adaptive method takes that for its own error: "
        f"it takes more steps, and the result is no better. Compute in float32 (`--tf32 false`; "
        f"in Python torch.set_float32_matmul_precision('highest') and "
        f"torch.backends.cudnn.allow_tf32 = False; no mixed precision), set rtol to "
        f"{2 * error:.1g} or more, or take a FixedGridSolver.",
        stacklevel=2,
    )
