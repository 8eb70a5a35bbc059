"""Everything that solves goes through one contract, from one place."""

import re
from pathlib import Path

import pytest
import torch

from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import CNF, ConcatSquashField, LatentDecoder, MLPField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, RosenbrockSolver, Solver
from tests.helpers.problems import times

SOLVERS = [AdaptiveSolver(), FixedGridSolver(), RosenbrockSolver()]
PACKAGE = Path(__file__).parents[2] / "steer_lightning"


def places(pattern, *folders):
    """Files of the package, outside their docstrings' examples, where a pattern is found."""
    found = []
    for path in sorted(p for folder in folders for p in (PACKAGE / folder).rglob("*.py")):
        lines = [x for x in path.read_text().splitlines() if ">>>" not in x and "..." not in x]
        found += [path.relative_to(PACKAGE).as_posix()] * len(
            re.findall(pattern, "\n".join(lines))
        )
    return found


def test_blocks_call_a_solver_in_one_place():
    assert places(r"solver\.solve\(", "nn", "horizon", "modules") == ["nn/block.py"]


def test_torchdiffeq_is_behind_one_file():
    assert set(places(r"\btorchdiffeq import odeint", ".")) == {"solvers/torchdiffeq.py"}


class Counting(Solver):
    """Passes everything on, and counts."""

    def __init__(self, solver):
        self.solver, self.calls = solver, 0

    def solve(self, *args, **options):
        self.calls += 1
        return self.solver.solve(*args, **options)


@pytest.mark.parametrize("inner", SOLVERS, ids=repr)
def test_a_new_solver_reaches_every_block(inner):
    x, solver = torch.ones(3, 2), Counting(inner)
    ODEBlock(MLPField(2, (4,)), solver)(x)
    flow = CNF(ConcatSquashField(2, (4,)), (2,), solver)
    flow.log_prob(x)
    flow.sample(2)
    decoder = LatentDecoder(MLPField(2, (4,), time_dependent=False), solver)
    decoder(x[None, :2], torch.tensor([[0.0, 1.0], [0.5, 0.7]]), torch.tensor([2, 2]))
    assert solver.calls == 4


@pytest.mark.parametrize("t0", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_length_integrated_is_that_in_force_far_from_zero(solver, t0):
    """In float32, by a clock."""
    block = ODEBlock(MLPField(2, (4,)), solver, (t0, t0 + 1.0))
    block.vector_field.forward = lambda t, y: torch.ones_like(y)
    block.horizon.perturb(FixedOffset(0.2371))
    end_time = block.horizon.in_force()["end_time"]
    found = block(torch.zeros(3, 2)).double()
    torch.testing.assert_close(found, torch.full_like(found, end_time - t0), rtol=1e-5, atol=0.0)
    # Times that a user gives in float32 are moved in float64.
    asked = times(t0, t0 + 1.0).float()
    found = block(torch.zeros(3, 2), asked)[-1].double()
    torch.testing.assert_close(found, torch.full_like(found, end_time - t0), rtol=1e-5, atol=0.0)
