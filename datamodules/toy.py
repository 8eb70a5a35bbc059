"""Toy densities as a LightningDataModule."""

import math
from typing import Literal

import torch
from torch import Tensor

from datamodules.base import Split, TensorData, TensorDataModule, check_at_least, seeded_generator
from datamodules.toy_densities import MixtureDensity, get_density
from steer_lightning.utils.checks import check_choice


class ToyDensityDataModule(TensorDataModule):
    r"""Points of a named one- or two-dimensional density.

    A batch is a tuple ``(x, weight)``: points, shape ``(B, D)``, and weights, shape ``(B,)``, both
    float32. Weights average 1 over a set, and the *weighted* mean of a loss estimates it:
    ``MeanMetric().update(-log_q, weight)``. Sampled points weigh 1. With
    ``test_points="quadrature"`` the test points are nodes on a line, weighted by the true density:
    the weighted mean of ``-log_q`` is then the cross-entropy, without sampling error:

    .. math:: -\int p(x) \log q(x)\, dx \approx -\sum_i p(x_i)\, \Delta x \log q(x_i)

    Each set is drawn once, from its own random stream. Nodes are the midpoints of ``n_test`` equal
    parts of the density's support.

    Args:
        name: Name of the density, a key of ``datamodules.toy_densities.DENSITIES``.
        n_train: Training points in an epoch.
        n_val: Validation points.
        n_test: Test points: samples or quadrature nodes.
        test_points: Where the test points come from; ``"quadrature"`` needs one dimension and a
            closed form.

    Example:
        >>> data = ToyDensityDataModule("mixture1d", test_points="quadrature", n_test=500)
        >>> data.setup("test")
        >>> x, weight = next(iter(data.test_dataloader()))
        >>> x.shape, weight.shape
        (torch.Size([500, 1]), torch.Size([500]))
        >>> cross_entropy = -(weight * data.density.log_prob(x)).sum() / weight.sum()
        >>> round(float(cross_entropy), 3)
        2.281
    """

    def __init__(
        self,
        name: str = "8gaussians",
        n_train: int = 100_000,
        n_val: int = 10_000,
        n_test: int = 10_000,
        batch_size: int = 100,
        eval_batch_size: int | None = 1000,
        test_points: Literal["samples", "quadrature"] = "samples",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_at_least(1, n_train=n_train, n_val=n_val, n_test=n_test)
        check_choice("test_points", test_points, ("samples", "quadrature"))
        self.name = name
        self.density = get_density(name)
        if test_points == "quadrature" and not (
            isinstance(self.density, MixtureDensity) and self.density.dim == 1
        ):
            raise ValueError(
                "Expected a one-dimensional density in closed form for test_points='quadrature', "
                f"but got {name!r} with {self.density.dim} dimensions. Set test_points='samples' "
                "or name='mixture1d'."
            )
        self.sizes: dict[Split, int] = {"train": n_train, "val": n_val, "test": n_test}
        self.test_points = test_points

    def build(self, split: Split) -> TensorData[tuple[Tensor, Tensor]]:
        n = self.sizes[split]
        if split == "test" and self.test_points == "quadrature":
            assert isinstance(self.density, MixtureDensity)
            low, high = self.density.support
            width = (high - low) / n
            nodes = low + width * (torch.arange(n, dtype=torch.float64).unsqueeze(-1) + 0.5)
            probabilities = self.density.log_prob(nodes).exp() * width
            weight = probabilities * (n / probabilities.sum())
            chosen = torch.arange(n)
            if n > self.eval_batch_size:
                # By multiples of the golden ratio, so that the nodes of each batch lie evenly in
                # the support: plots and sweeps look at the first.
                chosen = (chosen.double() * (0.5 * math.sqrt(5.0) - 0.5) % 1.0).argsort()
            return TensorData((nodes.float(), weight.float()), chosen)
        x = self.density.sample(n, seeded_generator(self.seed, split))
        return TensorData((x, torch.ones(n)))
