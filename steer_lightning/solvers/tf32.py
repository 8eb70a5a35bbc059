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


def tf32_message(
    rtol: float,
    *,
    device_type: str,
    dtype: torch.dtype,
    autocast: bool,
    matmul: str,
    conv: str,
    convolves: bool,
) -> str | None:
    """The warning for adaptive solves of a field that rounds to TF32; ``None`` if it does not.

    Torch lets convolutions round to TF32 by default, so that this is said of fields that have
    some, and of matrix products only where somebody chose it.

    Args:
        rtol: Relative tolerance of the solve.
        device_type: Where the state is; only ``"cuda"`` has TF32.
        dtype: Of the state; only float32 products become TF32.
        autocast: Whether autocast is on, which rounds products by a choice of its own.
        matmul: ``torch.backends.cuda.matmul.fp32_precision``.
        conv: ``torch.backends.cudnn.conv.fp32_precision``.
        convolves: Whether the field has convolutions.

    Example:
        >>> settings = {"device_type": "cuda", "dtype": torch.float32, "autocast": False}
        >>> settings |= {"matmul": "ieee", "conv": "tf32"}
        >>> tf32_message(1e-5, **settings, convolves=False) is None
        True
        >>> tf32_message(1e-5, **settings, convolves=True)[:57]
        'Expected a vector field as exact as rtol = 1e-05 asks for'
    """
    if device_type != "cuda" or dtype != torch.float32 or autocast or rtol >= TF32_ROUNDING:
        return None
    rounded = ["matrix products"] * (matmul == "tf32")
    rounded += ["convolutions"] * (conv == "tf32" and convolves)
    if not rounded:
        return None
    return (
        f"Expected a vector field as exact as rtol = {rtol:g} asks for, but its "
        f"{' and '.join(rounded)} round to TF32, with a relative error of up to "
        f"{TF32_ROUNDING:.1g}. An adaptive method takes that for its own error: it takes more "
        f"steps, and the result is no better. Compute in float32 (`--tf32 false`; in Python "
        f"torch.backends.cuda.matmul.fp32_precision = 'ieee' and "
        f"torch.backends.cudnn.conv.fp32_precision = 'ieee'), or set rtol to 1e-3 or more."
    )


class TF32Check:
    """Warns of TF32 in the first solve on a GPU; a solver that adapts its steps has one.

    Every further solve costs it the test of one boolean. Settings changed later, convolutions in
    a field that is no ``nn.Module``, and other fields of the same solver are not seen.
    """

    def __init__(self) -> None:
        self._done = False

    def __call__(self, vector_field: VectorField, y0: Any, rtol: float) -> None:
        if self._done or not (part := first_part(y0)).is_cuda:
            return
        self._done = True
        cudnn: Any = torch.backends.cudnn
        message = tf32_message(
            rtol,
            device_type=part.device.type,
            dtype=part.dtype,
            autocast=torch.is_autocast_enabled("cuda"),
            matmul=torch.backends.cuda.matmul.fp32_precision,
            conv=cudnn.conv.fp32_precision,
            convolves=_convolves(vector_field),
        )
        if message is not None:
            _warn_once(message)


@cache
def _warn_once(message: str) -> None:
    """Once in a process, however many blocks have the same tolerance."""
    warnings.warn(message, stacklevel=2)


def _convolves(vector_field: VectorField) -> bool:
    if not isinstance(vector_field, nn.Module):
        return False
    return any(isinstance(m, _ConvNd) for m in vector_field.modules())
