"""Explicit against implicit: training steps of stiff systems.

A forward and a backward pass, with gradients in the logarithms of the rates. Errors are those of
the state at the end, in units of its size, and of the gradient of the sum of that, relative,
against scipy's Radau and against rodas5p at a hundredth of the tolerance (Section 4.4 forgets its
rate until then: of a gradient of 2e-10 the error says nothing). Robertson's problem is
cut at t = 10, where the explicit methods can still follow. The second table has a training step of
`configs/stiff/robertson.yaml`, whose field is learned, with its solver, as it is and compiled, and
with dopri5. Compiling needs a C++ compiler.

``python -m benchmarks.stiff [--tolerance 1e-7] [--repeats 3] [--diffrax PYTHON]``
"""

import argparse
import copy
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.configs import build
from benchmarks.timing import (
    flat_gradient,
    machine,
    relative_difference,
    side_by_side,
    table,
)
from datamodules.stiff_systems import StiffSystem, robertson, two_scales
from datamodules.stiff_trajectories import radau
from steer_lightning.solvers import (
    AdaptiveSolver,
    NFEBudgetExceededError,
    RosenbrockSolver,
    Solver,
    SolveStats,
)

MAX_NFE = 10_000  # of the explicit solver, on the learned field
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
        "rodas5p, `compile=True`": RosenbrockSolver("rodas5p", **settings, compile=True),
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
    (y / torch.tensor(system.scale, dtype=torch.float64)).sum().backward()
    return y.detach(), flat_gradient(system.vector_field), solution.stats


def by_diffrax(python: str, tolerance: float, repeats: int) -> dict[str, Any]:
    """What `peers/kvaerno5.py` prints, run by an interpreter that has diffrax."""
    script = Path(__file__).parent / "peers" / "kvaerno5.py"
    command = [python, str(script), str(tolerance), str(repeats)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    numbers: dict[str, Any] = json.loads(found.stdout)
    return numbers


def compare(
    name: str, system: StiffSystem, tolerance: float, repeats: int, diffrax: dict[str, Any] | None
) -> list[list[str]]:
    """A row for each solver, and one of diffrax's numbers."""
    reference = torch.from_numpy(radau(system, 1e-12, 1e-15).y[:, -1])
    tight = RosenbrockSolver("rodas5p", 1e-2 * tolerance, 1e-5 * tolerance, None)
    _, gradient, _ = training_step(system, tight)

    def errors(y: Tensor, found: Tensor) -> list[str]:
        error = (y - reference) / torch.tensor(system.scale, dtype=torch.float64)
        return [f"{float(error.abs().max()):.1e}", f"{relative_difference(found, gradient):.1e}"]

    competitors = solvers(tolerance)
    cases = {n: lambda s=s: training_step(system, s) for n, s in competitors.items()}
    seconds = side_by_side(cases, repeats, warmup=1)
    rows = []
    for solver_name, solver in competitors.items():
        y, found, stats = training_step(system, solver)
        counts = (stats.accepted, stats.rejected, stats.nfe_forward, stats.jacobians)
        time = f"{1e3 * seconds[solver_name]:,.1f}"
        rows.append([name, solver_name, *(f"{n:,}" for n in counts), time, *errors(y, found)])
    if diffrax is not None:
        y, found = (torch.tensor(diffrax[key], dtype=torch.float64) for key in ("y", "gradient"))
        row = [name, "diffrax, Kvaerno5, jitted", f"{diffrax['steps']:,}", "", "", ""]
        rows.append([*row, f"{diffrax['ms']:,.1f}", *errors(y, found)])
    return rows


def learned(repeats: int) -> list[list[str]]:
    """Training steps of a learned field, batch 32, by the configuration's solver and by dopri5.

    The former as it is, and compiled.
    """
    module, data = build("stiff/robertson", "--data.batch_size=32")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.double()
    implicit = module.block.solver
    compiled = copy.copy(implicit)
    compiled.compile = True
    settings = {"rtol": implicit.rtol, "atol": implicit.atol}
    competitors = {
        f"{implicit.method}, as configured": implicit,
        f"{implicit.method}, compiled": compiled,
        f"dopri5, at most {MAX_NFE:,} evaluations": AdaptiveSolver(
            "dopri5", **settings, max_nfe=MAX_NFE
        ),
    }
    outcomes = {}

    def step(name: str) -> None:
        module.block.solver = competitors[name]
        module.block.stats.reset()
        module.zero_grad()
        try:
            module.evaluate(batch)["loss"].backward()
            outcomes[name] = "solved"
        except NFEBudgetExceededError:
            outcomes[name] = "fails"
        outcomes[name] += f" after {module.block.stats.nfe_forward:,} evaluations"

    cases = {name: lambda name=name: step(name) for name in competitors}
    seconds = side_by_side(cases, repeats, warmup=1)
    return [[name, f"{1e3 * seconds[name]:,.0f}", outcomes[name]] for name in competitors]


def run(
    tolerance: float = 1e-7, repeats: int = 3, t1: float = math.inf, diffrax: str | None = None
) -> str:
    """Measure, as tables; ``t1`` ends the systems earlier, ``diffrax`` is an interpreter."""
    systems = {
        "two_scales": ("Section 4.4, r = 1000", two_scales()),
        "robertson": ("Robertson, t to 10", robertson(10.0)),
    }
    peer = by_diffrax(diffrax, tolerance, repeats) if diffrax else {}
    rows = []
    for key, (name, system) in systems.items():
        system = system._replace(t_span=(0.0, min(t1, system.t_span[1])))
        rows += compare(name, system, tolerance, repeats, peer.get(key))
    steps = table(["learned Robertson, batch 32", "ms a training step", ""], learned(repeats))
    return f"{table(HEADER, rows)}\n\n{steps}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=1e-7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--diffrax", metavar="PYTHON", help="an interpreter that has diffrax")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(run(**vars(arguments)))
