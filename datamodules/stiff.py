"""The stiff ordinary differential equation of the STEER paper, solved in closed form."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from datamodules.base import Split, TensorData, TensorDataModule, check_at_least, seeded_generator
from steer_lightning.utils.checks import check_choice

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class StiffBatch(NamedTuple):
    r"""Short pieces of the solution: from ``(t_start, y_start)`` predict ``y_end`` at ``t_end``.

    Shapes: times ``(B,)``, states ``(B, 1)``.
    """

    t_start: Tensor
    y_start: Tensor
    t_end: Tensor
    y_end: Tensor


class StiffTrajectory(NamedTuple):
    r"""The solution at increasing times, the first one 0.

    Shapes: ``t`` is ``(T,)``, ``y`` is ``(T, 1)``. There is no batch axis.
    """

    t: Tensor
    y: Tensor


def stiff_solution(t: Tensor, r: float) -> Tensor:
    r"""Solve a linear equation with a fast and a slow time scale.

    .. math::
        \frac{dy}{dt} &= -r y + 3 r - 2 r e^{-t}, \qquad y(0) = 0 \\
        y(t) &= 3 - \frac{2 r}{r - 1} e^{-t} + \frac{3 - r}{r - 1} e^{-r t}

    At ``r = 1`` the limit is ``3 - (3 + 2 t) exp(-t)``; no digits are lost near ``r = 1`` or
    ``t = 0``. Differentiable in ``t``.

    Args:
        t: Times, any shape, floating.
        r: Rate of the fast part; ``ValueError`` if it is not positive and finite.

    Returns:
        Solution at ``t``, shape, dtype and device of ``t``.

    Example:
        >>> stiff_solution(torch.tensor([0.0, 1.0]), r=1000.0)
        tensor([0.0000, 2.2635])
    """
    _check_rate(r)
    # (exp(-t) - exp(-r t)) / (r - 1), with the slower exponential taken out as a factor.
    distance = abs(r - 1.0)
    if distance == 0.0:
        difference = t * torch.exp(-t)
    else:
        difference = -torch.exp(-min(r, 1.0) * t) * torch.expm1(-distance * t) / distance
    return -3.0 * torch.expm1(-r * t) - 2.0 * r * difference


class StiffODEDataModule(TensorDataModule):
    r"""Pieces of the stiff equation's solution to train on, the whole solution to test on.

    A training batch is a :class:`StiffBatch`. Validation, test and predict each yield one
    :class:`StiffTrajectory` on ``[0, test_t_end]``, the same one: as in the paper's code, the
    least of all checks is chosen on the test set. Computed in float64 and cast at the end.

    Args:
        r: Rate of the fast part of the solution, which is also the stiffness ratio; positive.
        t_end: End of the time range that training pieces lie in.
        interval: Length of a piece, in the units of ``t_end``; ``0 < interval < t_end``.
        n_starts: Number of start times, fixed once.
        start_times: ``"uniform"`` draws start times uniformly on ``[0, t_end - interval]``, which
            at a large ``r`` leaves out the fast transient, and 0, where the test begins;
            ``"uniform_and_zero"`` puts 0 among them. ``"grid"`` takes the multiples of
            ``interval`` from 0 on, as the code released with the paper: 118 of ``15 / 119``.
            ``"log_uniform"`` draws uniformly in the logarithm on
            ``[0.01 / r, t_end - interval]``, so that every time scale gets its share, and 0.
        test_t_end: End of the test trajectory.
        n_test: Number of equidistant test times, both ends included.
        dtype: Precision of the batches.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.4.

    Example:
        >>> data = StiffODEDataModule(r=1000.0)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).y_start.shape
        torch.Size([20, 1])
        >>> next(iter(data.val_dataloader())).y.shape
        torch.Size([120, 1])
    """

    def __init__(
        self,
        r: float = 1000.0,
        t_end: float = 15.0,
        interval: float = 0.125,
        n_starts: int = 1000,
        start_times: Literal["uniform", "uniform_and_zero", "grid", "log_uniform"] = "uniform",
        batch_size: int = 20,
        test_t_end: float = 25.0,
        n_test: int = 120,
        dtype: Literal["float32", "float64"] = "float32",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        _check_rate(r)
        if not 0.0 < interval < t_end < math.inf:
            raise ValueError(
                "Expected 0 < interval < t_end, both finite, but got "
                f"interval={interval} and t_end={t_end}. Shorten `interval` or raise `t_end`."
            )
        kinds = ("uniform", "uniform_and_zero", "grid", "log_uniform")
        check_choice("start_times", start_times, kinds)
        if start_times == "grid" and n_starts * interval > t_end * (1.0 + 1e-9):
            raise ValueError(
                "Expected n_starts * interval <= t_end for start times on a grid, but got "
                f"{n_starts} * {interval:g} and t_end={t_end:g}. Lower `n_starts`."
            )
        self.first_log_start = 0.01 / r
        if start_times == "log_uniform" and self.first_log_start >= t_end - interval:
            raise ValueError(
                "Expected 0.01 / r < t_end - interval for log-uniform start times, but got "
                f"0.01 / r = {self.first_log_start:g} and t_end - interval = "
                f"{t_end - interval:g}. Raise `t_end` or set start_times='uniform'."
            )
        if not 0.0 < test_t_end < math.inf:
            raise ValueError(
                f"Expected `test_t_end` to be positive and finite, but got {test_t_end}. "
                "Set it to the end of the test trajectory."
            )
        check_at_least(1, n_starts=n_starts)
        check_at_least(2, n_test=n_test)
        check_choice("dtype", dtype, DTYPES)
        self.r = r
        self.t_end = t_end
        self.interval = interval
        self.n_starts = n_starts
        self.start_times = start_times
        self.test_t_end = test_t_end
        self.n_test = n_test
        self.dtype = dtype

    def build(self, split: Split) -> TensorData[Any]:
        dtype = DTYPES[self.dtype]
        if split == "train":
            u = torch.rand(
                self.n_starts, generator=seeded_generator(self.seed, "train"), dtype=torch.float64
            )
            last = self.t_end - self.interval
            if self.start_times == "grid":
                t_start = self.interval * torch.arange(self.n_starts, dtype=torch.float64)
            elif self.start_times == "log_uniform":
                t_start = self.first_log_start * (last / self.first_log_start) ** u
            else:
                t_start = u * last
            if self.start_times != "uniform":
                t_start[0] = 0.0
            t_end = t_start + self.interval
            y_start, y_end = stiff_solution(torch.stack([t_start, t_end]), self.r).unsqueeze(-1)
            pieces = (t_start, y_start, t_end, y_end)
            return TensorData(StiffBatch(*(tensor.to(dtype) for tensor in pieces)))
        t = torch.linspace(0.0, self.test_t_end, self.n_test, dtype=torch.float64)
        y = stiff_solution(t, self.r).unsqueeze(-1)
        return OneTrajectory(StiffTrajectory(t.to(dtype), y.to(dtype)))


class OneTrajectory(TensorData[StiffTrajectory]):
    """A set with one item: neither batches nor ranks cut the trajectory."""

    def __len__(self) -> int:
        return 1

    def select(self, index: int | list[int]) -> StiffTrajectory:
        return self.tensors


def _check_rate(r: float) -> None:
    if not 0.0 < r < math.inf:
        raise ValueError(
            f"Expected `r` to be positive and finite, but got {r}. "
            "The equation decays to its solution only for a positive rate; the paper uses 1000."
        )
