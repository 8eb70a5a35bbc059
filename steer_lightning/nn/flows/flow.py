"""The contract of normalizing flows."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steer_lightning.nn.likelihood import standard_normal_log_prob


class Transport(NamedTuple):
    r"""Base points of a pass from data to base, with its change of log-density and regularisers.

    Args:
        z: Base points.
        delta_log_p: ``log_p(x) - log_p(z)``, shape ``(B,)``.
        kinetic: :math:`\int \tfrac12 \operatorname{mean}(f^2)\, dt`, shape ``(B,)``, summed over
            blocks; ``None`` if it was not asked for.
        jacobian: :math:`\int \operatorname{mean}((J e)^2)\, dt`, likewise.

    References:
        Finlay et al., *How to train your neural ODE*, ICML 2020, arXiv:2002.02798.
    """

    z: Tensor
    delta_log_p: Tensor
    kinetic: Tensor | None = None
    jacobian: Tensor | None = None

    @property
    def log_p(self) -> Tensor:
        """Log-density of the points under the flow, in nats, shape ``(B,)``."""
        return standard_normal_log_prob(self.z) + self.delta_log_p

    def after(self, before: "Transport") -> "Transport":
        """This transport with the one before it added."""
        pairs = zip(before[1:], self[1:], strict=True)
        sums: Any = (None if a is None or b is None else a + b for a, b in pairs)
        return Transport(self.z, *sums)


class Flow(nn.Module, ABC):
    """An invertible map between data and a standard normal base."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = event_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.event_shape

    @abstractmethod
    def transport(
        self, x: Tensor, *, generator: torch.Generator | None = None, regularize: bool = False
    ) -> Transport:
        """Carry points to the base.

        Args:
            x: Points, shape ``(B, *event_shape)``; a ``ValueError`` if they have another one.
            generator: Random stream of the trace estimator's noise, on the device of ``x``; the
                global one if not given.
            regularize: Integrate the kinetic energy and the Jacobian's norm beside them.
        """

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Carry base points ``(B, *latent_shape)`` to the data, shape ``(B, *event_shape)``."""

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Base points and ``log_p(x) - log_p(z)``, shape ``(B,)``; see :meth:`transport`."""
        carried = self.transport(x, generator=generator)
        return carried.z, carried.delta_log_p

    def log_prob(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Log-density at ``x`` in nats, ``(B,)``; an unbiased estimate if the trace is one."""
        return self.transport(x, generator=generator).log_p

    def sample(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw samples, shape ``(n, *event_shape)``.

        Args:
            n: Number of samples.
            generator: Random stream on the parameters' device; the global one if not given.
            temperature: Factor on the base's standard deviation; below one, samples lie nearer its
                mode.
        """
        like = next(self.parameters(), torch.empty(()))
        z = torch.randn(
            n, *self.latent_shape, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.inverse(temperature * z)


def check_shape(what: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` unless ``x`` is a batch of samples of a shape."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"Expected {what} of shape (B, {', '.join(map(str, shape))}), but got "
            f"{tuple(x.shape)}. Give the flow the `event_shape` of the data."
        )
