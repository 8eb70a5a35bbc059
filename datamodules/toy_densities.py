"""One- and two-dimensional densities to fit flows to, at a scale of about [-4, 4]."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steer_lightning.utils.checks import check_choice

TWO_PI = 2.0 * math.pi

Draw = Callable[[int, torch.Generator | None], Tensor]


class Density:
    """A density of ``dim`` features that can be sampled, here by a function."""

    def __init__(self, dim: int, draw: Draw) -> None:
        self.dim = dim
        self._draw = draw

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw points, shape ``(n, D)``, float32, on the CPU; ``None`` is the global stream."""
        return self._draw(n, generator)


class MixtureDensity(Density):
    r"""An equal-weight mixture of isotropic Gaussians of one variance.

    .. math:: p(x) = \frac{1}{K} \sum_k \mathcal{N}(x;\, \mu_k, \sigma^2 I)

    The interval ``support`` holds its mass along every axis.

    Args:
        means: Centres, ``K`` rows of ``D`` numbers.
        variance: Common variance along each axis, positive.

    Example:
        >>> normal = MixtureDensity([[0.0]], variance=1.0)
        >>> normal.log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
    """

    def __init__(self, means: Sequence[Sequence[float]], variance: float) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.variance = variance
        reach = 9.0 * math.sqrt(variance)
        self.support = float(self.means.min()) - reach, float(self.means.max()) + reach
        super().__init__(self.means.shape[1], self._points)

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate the log-density, in nats, shape ``(...)``, at points, shape ``(..., D)``."""
        means = self.means.to(x)
        square_distance = (x.unsqueeze(-2) - means).square().sum(-1)
        log_norm = 0.5 * self.dim * math.log(TWO_PI * self.variance) + math.log(len(means))
        return torch.logsumexp(-0.5 * square_distance / self.variance, dim=-1) - log_norm

    def _points(self, n: int, generator: torch.Generator | None) -> Tensor:
        component = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.dim, generator=generator)
        return self.means.float()[component] + math.sqrt(self.variance) * noise


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _checkerboard(n: int, generator: torch.Generator | None) -> Tensor:
    # Black squares of side 2, four rows and columns on [-4, 4]: column + row is even.
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = 2.0 * torch.stack([column, row], dim=-1) - 4.0
    return corner + 2.0 * torch.rand(n, 2, generator=generator)


def _pinwheel(n: int, generator: torch.Generator | None) -> Tensor:
    # Five arms: Gaussian blobs on a circle, twisted by an angle that grows with the radius.
    arm = torch.randint(5, (n,), generator=generator) * (TWO_PI / 5.0)
    along, across = torch.randn(2, n, generator=generator)
    along, across = 1.0 + 0.3 * along, 0.1 * across
    twist = arm + 0.25 * along.exp()
    return 2.0 * _polar(torch.hypot(along, across), torch.atan2(across, along) + twist)


def _two_spirals(n: int, generator: torch.Generator | None) -> Tensor:
    # One and a half turns; the square root spreads points evenly over an arm's area.
    angle = 3.0 * math.pi * torch.rand(n, generator=generator).sqrt()
    side = 2.0 * torch.randint(2, (n,), generator=generator) - 1.0
    points = _polar(side * angle / 3.0, math.pi - angle)
    return points + 0.1 * torch.randn(n, 2, generator=generator)


def _moons(n: int, generator: torch.Generator | None) -> Tensor:
    # Two half circles; the lower one is the upper one turned about (0.5, 0.25).
    points = _polar(torch.ones(n), math.pi * torch.rand(n, generator=generator))
    lower = torch.randint(2, (n, 1), generator=generator).bool()
    points = torch.where(lower, torch.tensor([1.0, 0.5]) - points, points)
    noise = 0.1 * torch.randn(n, 2, generator=generator)
    return 2.0 * (points + noise - torch.tensor([0.5, 0.25]))


def _swiss_roll(n: int, generator: torch.Generator | None) -> Tensor:
    angle = 1.5 * math.pi * (1.0 + 2.0 * torch.rand(n, generator=generator))
    return _polar(angle / 4.0, angle) + 0.2 * torch.randn(n, 2, generator=generator)


def _circles(n: int, generator: torch.Generator | None) -> Tensor:
    radius = 1.5 * (1.0 + torch.randint(2, (n,), generator=generator))
    ring = _polar(radius, TWO_PI * torch.rand(n, generator=generator))
    return ring + 0.2 * torch.randn(n, 2, generator=generator)


def _eight_gaussians() -> MixtureDensity:
    radius = 2.0 * math.sqrt(2.0)
    angles = [k * math.pi / 4.0 for k in range(8)]
    means = [[radius * math.cos(angle), radius * math.sin(angle)] for angle in angles]
    return MixtureDensity(means, variance=0.125)


DENSITIES: dict[str, Callable[[], Density]] = {
    "mixture1d": lambda: MixtureDensity([[-2.8], [-0.9], [2.0], [3.4], [5.1]], variance=0.4),
    "8gaussians": _eight_gaussians,
    "checkerboard": lambda: Density(2, _checkerboard),
    "pinwheel": lambda: Density(2, _pinwheel),
    "2spirals": lambda: Density(2, _two_spirals),
    "moons": lambda: Density(2, _moons),
    "swissroll": lambda: Density(2, _swiss_roll),
    "circles": lambda: Density(2, _circles),
}


def get_density(name: str) -> Density:
    """Create a density by its name in ``DENSITIES``.

    Raises:
        ValueError: If there is no such density; the message lists near names.

    References:
        ``mixture1d`` is that of Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Figure 3.
    """
    check_choice("density", name, DENSITIES)
    return DENSITIES[name]()
