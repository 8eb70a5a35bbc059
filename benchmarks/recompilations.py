"""Recompilations over 200 compiled training steps with a fresh end time each."""

import torch
from torch._dynamo.utils import counters

from benchmarks.timing import table
from benchmarks.toy_flow import make_batch, make_field, training_step
from steer_lightning import steer
from steer_lightning.nn import CNF
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver

STEPS = 200


def count(flow: CNF, scope: str) -> tuple[int, int]:
    """Graphs compiled in the first step, and in all those after it."""
    x = make_batch()
    torch._dynamo.reset()
    counters.clear()
    first = 0
    for step in range(STEPS):
        with steer(flow, b=0.5, step=step, scope=scope):  # type: ignore[arg-type]
            training_step(flow, x, flow.parameters())
        if step == 0:
            first = counters["stats"]["unique_graphs"]
    return first, counters["stats"]["unique_graphs"] - first


def run() -> str:
    """Count, and tell as a Markdown table."""
    rows = []
    for scope in ("batch", "sample"):
        for name, flow in {
            "field, dopri5": CNF(make_field(), (2,), TorchdiffeqSolver(), compile=True),
            "whole solve, midpoint x 1": CNF(
                make_field(), (2,), FixedGridSolver("midpoint", n_steps=1, compile="solve")
            ),
        }.items():
            first, later = count(flow, scope)
            rows.append([name, f"one T per {scope}", str(first), str(later)])
    return table(["compiled", "end times", "graphs in step 1", f"in steps 2 to {STEPS}"], rows)


if __name__ == "__main__":
    print(run())
