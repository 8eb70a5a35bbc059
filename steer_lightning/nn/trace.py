"""The divergence of a vector field: exact, or estimated along one random probe."""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from steer_lightning.utils.checks import check_choice

Field = Callable[[Tensor, Tensor], Tensor]
TraceEstimator = Literal["exact", "hutchinson"]
Noise = Literal["gaussian", "rademacher"]

TRACE_ESTIMATORS: Final = ("exact", "hutchinson")
NOISES: Final = ("gaussian", "rademacher")


def exact_jacobian(vector_field: Field, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Value and Jacobian of a vector field, by forward mode along each coordinate.

    Works under ``inference_mode`` and can be trained through. The cost is ``D`` tangents: for
    small ``D``. A field's own ``jvp`` is asked for all of them in one call.

    Args:
        vector_field: ``f(t, y)``, which treats the samples of a batch apart.
        t: Time, shape ``()`` or ``(B,)``.
        y: State, shape ``(B, ...)`` with ``D`` entries a sample.

    Returns:
        ``f(t, y)``, shape of ``y``, and :math:`\partial f_i / \partial y_j` at ``[j, b, i]``,
        shape ``(D, B, D)``.
    """
    dim = y[0].numel()
    basis = torch.eye(dim, dtype=y.dtype, device=y.device).view(dim, 1, *y.shape[1:])
    own = getattr(vector_field, "jvp", None)
    if own is not None:
        times = t.repeat(dim) if t.ndim else t
        probes = basis.expand(dim, *y.shape).flatten(0, 1)
        value, tangent = own(times, y.repeat(dim, *(1,) * (y.ndim - 1)), probes)
        return value[: y.shape[0]], tangent.reshape(dim, y.shape[0], dim)

    def along(probe: Tensor) -> tuple[Tensor, Tensor]:
        value, tangent = jvp(vector_field, t, y, probe.expand_as(y))
        return value, tangent.flatten(1)

    values, columns = torch.func.vmap(along)(basis)
    return values[0], columns


def jvp(vector_field: Field, t: Tensor, y: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    r"""Value of a vector field and its derivative :math:`\frac{\partial f}{\partial y} e`.

    A field with a method ``jvp(t, y, probe)`` computes them its own, fast way; any other is
    differentiated by forward mode. Both can be trained through by reverse mode, and work under
    ``inference_mode``.
    """
    own = getattr(vector_field, "jvp", None)
    value: Tensor
    tangent: Tensor
    if own is not None:
        value, tangent = own(t, y, probe)
    else:
        value, tangent = torch.func.jvp(  # type: ignore[misc]  # a third entry only with has_aux
            lambda x: vector_field(t, x), (y,), (probe,)
        )
    return value, tangent


def trace_noise(
    y: Tensor, noise: Noise = "gaussian", generator: torch.Generator | None = None
) -> Tensor:
    r"""Probes for Hutchinson's estimate, :math:`\operatorname{tr} J = E[e^\top J e]`.

    Args:
        y: State whose shape, dtype and device the probes have.
        noise: ``"gaussian"``, or ``"rademacher"``: plus or minus one, of less variance.
        generator: Random stream on the device of ``y``; the global one if not given.

    Raises:
        ValueError: If ``noise`` is unknown.

    References:
        Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989;
        Grathwohl et al., *FFJORD*, ICLR 2019, Section 3.1.
    """
    check_choice("noise", noise, NOISES)
    if noise == "gaussian":
        return torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
    signs = torch.randint(0, 2, y.shape, generator=generator, device=y.device)
    return signs.to(y.dtype) * 2.0 - 1.0
