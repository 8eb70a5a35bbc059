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


def warn_of_rounding(vector_field: VectorField, y0: Any, rtol: float) -> None:
    """Warn where autocast, or TF32 on a GPU, rounds by more than an adaptive solve's tolerance.

    Torch lets convolutions round to TF32 by default, and matrix products where somebody chose it.
    Convolutions in a field that is no ``nn.Module`` are not seen.
    """
    device = (part := first_part(y0)).device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        if rtol < 0.5 * torch.finfo(low).eps:
            _warn_once(f"autocast rounds to {low}", 0.5 * torch.finfo(low).eps, rtol)
    elif part.is_cuda and part.dtype == torch.float32 and rtol < TF32_ROUNDING:
        cudnn: Any = torch.backends.cudnn
        rounded = ["matrix products"] * (torch.backends.cuda.matmul.fp32_precision == "tf32")
        if cudnn.conv.fp32_precision == "tf32" and isinstance(vector_field, nn.Module):
            convolves = any(isinstance(m, _ConvNd) for m in vector_field.modules())
            rounded += ["convolutions"] * convolves
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
