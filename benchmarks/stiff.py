"""Explicit against implicit: training steps of stiff systems.

A forward and a backward pass, with gradients in the logarithms of the rates. Errors are those of
the state at the end, in units of its size, and of the gradient of the sum of that, absolute,
against scipy's Radau and against rodas5p at a hundredth of the tolerance. Robertson's problem is
cut at t = 10, where the explicit methods can still follow.

``python -m benchmarks.stiff [--tolerance 1e-7] [--repeats 3]``
"""

import argparse
import math

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.timing import flat_gradient, machine, side_by_side, table
from datamodules.stiff_systems import StiffSystem, robertson, two_scales
from steer_lightning.solvers import AdaptiveSolver, RosenbrockSolver, Solver, SolveStats

HEADER = [
    "system", "solver", "steps", "rejected", "evaluations", "Jacobians", "ms a training step",
    "error", "of the gradient",
]  # fmt: skip


def solvers(tolerance: float) -> dict[str, Solver]:
    """Those compared, with an absolute tolerance for components as small as Robertson's."""
    settings = {"rtol": tolerance, "atol": 1e-3 * tolerance, "max_nfe": None}
    return {
        "dopri5": AdaptiveSolver("dopri5", **settings),
        "tsit5": AdaptiveSolver("tsit5", **settings),
        'dopri5, `stiff="switch"`': AdaptiveSolver("dopri5", **settings, stiff="switch"),
        "rodas5p": RosenbrockSolver("rodas5p", **settings),
        "rodas4": RosenbrockSolver("rodas4", **settings),
        "rosenbrock23": RosenbrockSolver("rosenbrock23", **settings),
    }


def training_step(system: StiffSystem, solver: Solver) -> tuple[Tensor, Tensor, SolveStats]:
    """State at the end, gradient in the rates and work of one forward and backward pass."""
    system.vector_field.zero_grad()
    y0 = torch.tensor([system.y0], dtype=torch.float64)
    t = torch.tensor(system.t_span, dtype=torch.float64)
    solution = solver.solve(system.vector_field, y0, t)
    y = solution.ys[-1, 0]
    (y / torch.tensor(system.scale)).sum().backward()
    return y.detach(), flat_gradient(system.vector_field), solution.stats


def exact(system: StiffSystem) -> Tensor:
    """State at the end, by scipy."""

    @torch.no_grad()
    def field(t: float, y: object) -> object:
        time = torch.tensor(t, dtype=torch.float64)
        return system.vector_field(time, torch.as_tensor(y)[None])[0].numpy()

    found = solve_ivp(field, system.t_span, system.y0, method="Radau", rtol=1e-12, atol=1e-15)
    return torch.from_numpy(found.y[:, -1])


def compare(name: str, system: StiffSystem, tolerance: float, repeats: int) -> list[list[str]]:
    """A row for each solver."""
    reference = exact(system)
    tight = RosenbrockSolver("rodas5p", 1e-2 * tolerance, 1e-5 * tolerance, None)
    _, gradient, _ = training_step(system, tight)
    competitors = solvers(tolerance)
    cases = {n: lambda s=s: training_step(system, s) for n, s in competitors.items()}
    seconds = side_by_side(cases, repeats, warmup=1)
    rows = []
    for solver_name, solver in competitors.items():
        y, found, stats = training_step(system, solver)
        error = ((y - reference) / torch.tensor(system.scale)).abs().max()
        counts = (stats.accepted, stats.rejected, stats.nfe_forward, stats.jacobians)
        rows.append(
            [
                name, solver_name, *(f"{n:,}" for n in counts),
                f"{1e3 * seconds[solver_name]:,.0f}", f"{float(error):.1e}",
                f"{float((found - gradient).norm()):.1e}",
            ]
        )  # fmt: skip
    return rows


def run(tolerance: float = 1e-7, repeats: int = 3, t1: float = math.inf) -> str:
    """Measure, as a table; ``t1`` ends the systems earlier."""
    systems = {"Section 4.4, r = 1000": two_scales(), "Robertson, t to 10": robertson(10.0)}
    rows = []
    for name, system in systems.items():
        system = system._replace(t_span=(0.0, min(t1, system.t_span[1])))
        rows += compare(name, system, tolerance, repeats)
    return table(HEADER, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=1e-7)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(run(**vars(arguments)))
