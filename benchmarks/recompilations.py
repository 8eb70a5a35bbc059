"""Recompilations over 200 compiled training steps with a fresh end time each.

``python -m benchmarks.recompilations [--compiled-step]``; dopri5's step takes a minute or two to
compile.
"""

import sys

import torch
from torch._dynamo.utils import counters

from benchmarks.timing import table
from benchmarks.toy_flow import contender, make_batches, make_field
from steer_lightning import steer
from steer_lightning.nn import CNF
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver

STEPS = 200


def count(flow: CNF, scope: str) -> tuple[int, int]:
    """Graphs compiled in the first step, and in all those after it."""
    (x,) = make_batches(1)
    torch._dynamo.reset()
    counters.clear()
    first = 0
    for step in range(STEPS):
        with steer(flow, b=0.5, step=step, scope=scope):  # type: ignore[arg-type]
            contender(flow, x).step()
        if step == 0:
            first = counters["stats"]["unique_graphs"]
    return first, counters["stats"]["unique_graphs"] - first


def run(compiled_step: bool = False) -> str:
    """Count, and tell as a Markdown table."""
    flows = {
        "field, in dopri5": CNF(make_field(), (2,), compile=True),
        "step of midpoint x 1": CNF(
            make_field(), (2,), FixedGridSolver("midpoint", n_steps=1, compile=True)
        ),
    }
    if compiled_step:
        flows["step of dopri5"] = CNF(make_field(), (2,), AdaptiveSolver(compile=True))
    rows = [
        [name, f"one T per {scope}", *map(str, count(flow, scope))]
        for scope in ("batch", "sample")
        for name, flow in flows.items()
    ]
    return table(["compiled", "end times", "graphs in step 1", f"in steps 2 to {STEPS}"], rows)


if __name__ == "__main__":
    print(run("--compiled-step" in sys.argv))
