"""Evaluations against error on classical problems, by solvers side by side.

Ten problems that are not stiff, in float64, at tolerances from 1e-3 to 1e-9; the error is that of
the worst component at the end, against a reference by scipy's DOP853 at 1e-13.

``python -m benchmarks.work_precision [--plot PATH]``
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from benchmarks.timing import table
from steer_lightning.solvers import AdaptiveSolver

TOLERANCES = tuple(np.logspace(-3, -9, 13).tolist())
BASE = "torchdiffeq dopri5"

VectorField = Callable[[Tensor, Tensor], Tensor]
Integrate = Callable[[VectorField, Tensor, float, float], Tensor]  # until a time, to a tolerance


class Problem(NamedTuple):
    """``y' = f(t, y)`` from ``y0`` at time zero until ``end``; ``f`` gives its components."""

    f: Callable[..., Sequence[Tensor | float]]
    y0: tuple[float, ...]
    end: float

    def vector_field(self, t: Tensor, y: Tensor) -> Tensor:
        """The field as solvers call it."""
        return torch.stack(list(self.f(t, *y)))

    def reference(self) -> Tensor:
        """State at the end."""
        solution = solve_ivp(
            lambda t, y: self.f(torch.as_tensor(t), *torch.as_tensor(y)), (0.0, self.end), self.y0,
            "DOP853", rtol=1e-13, atol=1e-13,
        )  # fmt: skip
        return torch.from_numpy(solution.y[:, -1])


def _kepler(t: Tensor, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Sequence[Tensor]:
    cubed = (x * x + y * y) ** 1.5
    return u, v, -x / cubed, -y / cubed


PROBLEMS = {
    "decay": Problem(lambda t, y: [-y], (1.0,), 10.0),
    "y cos t": Problem(lambda t, y: [y * torch.cos(t)], (1.0,), 20.0),
    "logistic": Problem(lambda t, y: [y / 4 * (1 - y / 20)], (1.0,), 20.0),
    "oscillator": Problem(lambda t, x, v: [v, -x], (1.0, 0.0), 20.0),
    "Lotka-Volterra": Problem(lambda t, x, y: [1.5 * x - x * y, x * y - 3 * y], (1.0, 1.0), 10.0),
    "Van der Pol": Problem(lambda t, x, v: [v, 2 * (1 - x * x) * v - x], (2.0, 0.0), 10.0),
    "rigid body": Problem(
        lambda t, x, y, z: [y * z, -x * z, -0.51 * x * y], (0.0, 1.0, 1.0), 20.0
    ),
    "Kepler": Problem(_kepler, (0.5, 0.0, 0.0, 3**0.5), 10.0),
    "Brusselator": Problem(
        lambda t, x, y: [1 + x * x * y - 4 * x, 3 * x - x * x * y], (1.5, 3.0), 10.0
    ),
    "Lorenz": Problem(
        lambda t, x, y, z: [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], (1.0,) * 3, 2.0
    ),
}


def solvers() -> dict[str, Integrate]:
    """Solvers to compare, torchdiffeq first; zuko if it is installed."""

    def torchdiffeq(f: VectorField, y0: Tensor, end: float, tol: float) -> Tensor:
        times = torch.tensor([0.0, end], dtype=y0.dtype)
        return odeint(f, y0, times, rtol=tol, atol=tol, method="dopri5")[-1]

    def own(method: str) -> Integrate:
        def integrate(f: VectorField, y0: Tensor, end: float, tol: float) -> Tensor:
            solver = AdaptiveSolver(method, tol, tol, max_nfe=None)  # type: ignore[arg-type]
            times = torch.tensor([0.0, end], dtype=y0.dtype)
            return solver.solve(f, y0[None], times).ys[-1, 0]

        return integrate

    found: dict[str, Integrate] = {BASE: torchdiffeq}
    found |= {f"ours, {method}": own(method) for method in ("dopri5", "tsit5", "bosh3")}
    with suppress(ImportError):
        from zuko.utils import odeint as zuko

        found["zuko dopri5"] = lambda f, y0, end, tol: zuko(f, y0, 0.0, end, rtol=tol, atol=tol)
    return found


class Point(NamedTuple):
    """One solve: evaluations, and error at the end."""

    nfe: int
    error: float


@torch.no_grad()
def measure(
    problem: Problem, integrate: Integrate, tolerances: Sequence[float] = TOLERANCES
) -> list[Point]:
    """A point for each tolerance."""
    reference, points = problem.reference(), []
    for tolerance in tolerances:
        calls = []

        def counted(t: Tensor, y: Tensor, calls: list[None] = calls) -> Tensor:
            calls.append(None)
            return problem.vector_field(t, y.flatten()).view_as(y)

        y0 = torch.tensor(problem.y0, dtype=torch.float64)
        y = integrate(counted, y0, problem.end, tolerance)
        points.append(Point(len(calls), float((y - reference).abs().max())))
    return points


def relative_work(points: Sequence[Point], base: Sequence[Point]) -> float:
    """Evaluations in units of those of ``base`` at the same error, their geometric mean.

    The logarithm of the base's evaluations is interpolated over that of its error; points of
    other errors than the base has are left out. NaN if none is left.
    """
    base = sorted(base, key=lambda point: point.error)
    errors = [point.error for point in base]
    inside = [point for point in points if errors[0] <= point.error <= errors[-1]]
    if not inside:
        return float("nan")
    nfe, error = np.log(np.array(inside, dtype=float).T)
    expected = np.interp(error, np.log(errors), np.log([point.nfe for point in base]))
    return float(np.exp(np.mean(nfe - expected)))


Curves = Mapping[str, Mapping[str, Sequence[Point]]]  # by problem and solver


def curves(
    problems: Mapping[str, Problem] = PROBLEMS, tolerances: Sequence[float] = TOLERANCES
) -> Curves:
    """Measure every solver on every problem."""
    return {
        name: {key: measure(problem, solve, tolerances) for key, solve in solvers().items()}
        for name, problem in problems.items()
    }


def summary(measured: Curves) -> str:
    """Markdown table of the work relative to torchdiffeq's."""
    names = list(next(iter(measured.values())))
    ratios = {
        problem: [relative_work(by_solver[name], by_solver[BASE]) for name in names[1:]]
        for problem, by_solver in measured.items()
    }
    ratios["geometric mean"] = np.exp(np.nanmean(np.log(list(ratios.values())), axis=0)).tolist()
    rows = [[problem, *(f"{ratio:.2f}" for ratio in row)] for problem, row in ratios.items()]
    return table([f"evaluations at equal error, {BASE} = 1", *names[1:]], rows)


def draw(measured: Curves) -> Figure:
    """Evaluations against error, a panel for each problem; larger errors than 10 lie outside."""
    columns = 5
    n_rows = -(-len(measured) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * n_rows + 0.6), layout="constrained")
    axes = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    axes[0, 0].set(xscale="log", yscale="log", xlim=(1e-11, 10), ylim=(20, 3e4))
    axes[0, 0].set_xticks([1e-9, 1e-6, 1e-3, 1.0])
    for axis, (problem, by_solver) in zip(axes.flat, measured.items(), strict=False):
        for (name, points), marker in zip(by_solver.items(), "os^vD", strict=False):
            nfe, error = zip(*points, strict=True)
            axis.plot(error, nfe, marker=marker, markersize=3, lw=1, label=name)
        axis.set_title(problem, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(measured) :]:
        axis.set_axis_off()
    figure.supxlabel("error at the end", fontsize=11)
    figure.supylabel("evaluations", fontsize=11)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def run(plot: str | None = None) -> str:
    """Measure, tell as a Markdown table, and draw to ``plot`` if that is given."""
    measured = curves()
    if plot is not None:
        Path(plot).parent.mkdir(parents=True, exist_ok=True)
        draw(measured).savefig(plot, dpi=150)
    return summary(measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", help="PNG to draw")
    print(run(**vars(parser.parse_args())))
