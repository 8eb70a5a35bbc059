"""Devices: whether a solve and its gradients are right there."""

import math
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

from steer_lightning.doctor import Finding, in_words
from steer_lightning.solvers import AdaptiveSolver, Solver, TorchdiffeqSolver
from steer_lightning.utils.problem import default_times, has_float64

GRADIENTS: Final[tuple[Literal["autograd", "adjoint"], ...]] = ("autograd", "adjoint")
# Of the solver, and of what is compared.
TOLERANCES: Final = {torch.float32: (1e-6, 1e-4), torch.float64: (1e-9, 1e-6)}


class Decay(nn.Module):
    """``y' = -a y``, whose solution is ``y0 exp(-a t)``."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.a * y


def check_devices() -> Iterator[Finding]:
    """A solve on every device that torch sees."""
    devices = find_devices()
    for device in devices:
        yield from check_solves(device)
    if len(devices) == 1:
        yield check_hidden_gpus(nvidia_gpus())


def find_devices() -> list[torch.device]:
    """The CPU, and the accelerators that torch sees."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found += [torch.device(accelerator.type, number) for number in range(count)]
    return found


def check_solves(device: torch.device) -> Iterator[Finding]:
    """A solve by each gradient in each dtype against the closed form."""
    dtypes = [torch.float32, *([torch.float64] if has_float64(device) else [])]
    faults = [
        Finding(f"solve on {device}", "fault", wrong)
        for dtype in dtypes
        for gradient in GRADIENTS
        if (wrong := wrong_solve(device, dtype, gradient))
    ]
    yield from faults
    if not faults:
        yield Finding(
            f"solve on {device}",
            "ok",
            f"y' = -a y in {_names(dtypes)}: solution and gradients, by autograd and adjoint, are "
            f"those of the closed form",
        )


def wrong_solve(
    device: torch.device, dtype: torch.dtype, gradient: Literal["autograd", "adjoint"]
) -> str | None:
    """Describe what is wrong with a solve of ``y' = -a y``; ``None`` if nothing is."""
    a, t1, tolerance, allowed = 0.7, 1.5, *TOLERANCES[dtype]
    where = f"dopri5 in {_names([dtype])} by {gradient}"
    remedy = (
        "Do not train on this device: try another version of torch, and report it with what "
        "this command prints."
    )
    try:
        field = Decay(torch.tensor(a, dtype=dtype, device=device))
        y0 = torch.tensor(2.0, dtype=dtype, device=device, requires_grad=True)
        solver: Solver = AdaptiveSolver("dopri5", tolerance, tolerance)
        if gradient == "adjoint":
            solver = TorchdiffeqSolver("dopri5", tolerance, tolerance, gradient)
        y = solver.solve(field, y0, default_times(y0, 0.0, t1)).ys[-1]
        found = [y.item(), *(g.item() for g in torch.autograd.grad(y, [y0, field.a]))]
    except Exception as error:  # a driver may raise anything
        return f"{where} fails ({in_words(error)}). {remedy}"
    decay = math.exp(-a * t1)
    exact = {"y(t1)": 2.0 * decay, "its gradient in y(t0)": decay, "in a": -2.0 * t1 * decay}
    for value, (name, expected) in zip(found, exact.items(), strict=True):
        if not math.isclose(value, expected, rel_tol=allowed):
            return f"{where}: {name} is {value:.7g} in place of {expected:.7g}. {remedy}"
    return None


def nvidia_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver lists; none without the driver."""
    command = shutil.which("nvidia-smi")
    try:
        listed = subprocess.run([command or "", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def check_hidden_gpus(gpus: Sequence[str]) -> Finding:
    """Whether there are GPUs that torch, which sees none, should see."""
    built = torch.version.cuda
    build = f"torch {torch.__version__}, built " + (
        f"for CUDA {built}" if built else "without CUDA"
    )
    if not gpus:
        return Finding("GPU", "note", f"none was found; {build}. Everything runs on a CPU.")
    remedy = (
        f"Unset CUDA_VISIBLE_DEVICES, where it is set; update NVIDIA's driver to one for CUDA "
        f"{built}, or install a torch for the driver."
        if built
        else "Install a build for CUDA, with its torchvision: `pip install --force-reinstall "
        "torch torchvision`."
    )
    return Finding(
        "GPU", "fault", f"nvidia-smi lists {len(gpus)}, but torch sees none: {build}. {remedy}"
    )


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
