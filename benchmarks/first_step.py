"""Evaluations saved by the first step of the last batch, with STEER and without.

Forward and backward passes after some training, batch after batch at the same weights, of the 2-D
flow and, if there is MNIST in the folder of data, of the small image flow and the small classifier
of the configs, at their tolerances.

``python -m benchmarks.first_step [--data_dir DIR]``
"""

import argparse
import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from benchmarks.configs import DATA_DIR, build
from benchmarks.timing import machine, table
from benchmarks.toy_flow import TRAINING_STEPS, make_batches, make_field
from steer_lightning import steer
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF
from steer_lightning.solvers import AdaptiveSolver, TorchdiffeqSolver

HEADER = ["model", "evaluations, auto", "previous", "CPU ms a step, auto", "previous"]


class Work(NamedTuple):
    """Evaluations and CPU seconds of one batch, or their means."""

    nfe: float
    seconds: float


def train(module: Any, batches: Sequence[Any], lr: float) -> None:
    """Adam over the batches."""
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for batch in batches:
        optimizer.zero_grad()
        module.evaluate(batch)["loss"].backward()
        optimizer.step()


def with_first_step(module: Any, first_step: Any) -> Any:
    """A copy whose blocks begin like this, at the tolerances that they have."""
    module = copy.deepcopy(module)
    for block in module.modules():
        solver = getattr(block, "solver", None)
        if isinstance(solver, AdaptiveSolver | TorchdiffeqSolver):
            block.solver = AdaptiveSolver("dopri5", solver.rtol, solver.atol, None, first_step)
    return module


def step(module: Any, batch: Any, b: float, number: int) -> Work:
    """One forward and backward pass, the end time drawn with half-width ``b`` unless zero."""
    blocks = [block for block in module.modules() if hasattr(block, "stats")]
    for block in blocks:
        block.stats.reset()
    start = time.process_time()
    with steer(module, b=b, step=number, seed=0) if b else nullcontext():
        module.zero_grad()
        module.evaluate(batch)["loss"].backward()
    seconds = time.process_time() - start
    return Work(sum(block.stats.nfe_forward for block in blocks), seconds)


def compare(name: str, module: Any, batches: Sequence[Any], b: float) -> list[list[str]]:
    """Rows of means over all batches but the first, without STEER and with it."""
    rows = []
    for width in (0.0, b):
        modules = [with_first_step(module, choice) for choice in ("auto", "previous")]
        works = [[step(m, x, width, i) for m in modules] for i, x in enumerate(batches)][1:]
        auto, previous = (
            Work(*map(mean, zip(*column, strict=True))) for column in zip(*works, strict=True)
        )
        rows.append(
            [f"{name}, b = {width:g}", f"{auto.nfe:.1f}", f"{previous.nfe:.1f}",
             f"{1e3 * auto.seconds:.1f}", f"{1e3 * previous.seconds:.1f}"]
        )  # fmt: skip
    return rows


def compare_config(
    name: str, config: str, data_dir: Path, b: float, lr: float, n_train: int, n: int
) -> list[list[str]]:
    """Rows of the model of a config, after so many steps, over so many batches."""
    torch.manual_seed(0)
    module, data = build(config, f"--data.init_args.data_dir={data_dir}")
    data.prepare_data()
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), n_train + n))
    train(module, batches[:n_train], lr)
    return compare(f"{name} after {n_train} steps", module, batches[n_train:], b)


def run(
    data_dir: str | None = None,
    training_steps: int = TRAINING_STEPS,
    n: int = 21,
    image_steps: tuple[int, int] = (20, 200),
) -> str:
    """Measure over ``n`` batches, and tell as a Markdown table."""
    flow = CNFModule(CNF(make_field(training_steps), (2,)))
    batches = make_batches(training_steps + n)[training_steps:]
    rows = compare(f"2-D flow after {training_steps} steps", flow, batches, b=0.5)
    folder = DATA_DIR / "mnist" if data_dir is None else Path(data_dir)
    if not folder.exists():
        told = f"Images left out: {folder} does not exist; give --data_dir or STEER_DATA_DIR."
        return f"{table(HEADER, rows)}\n\n{told}"
    flow_steps, classifier_steps = image_steps
    rows += compare_config(
        "image flow", "cnf/mnist_small_ffjord", folder, 0.5, 1e-3, flow_steps, max(2, n // 5)
    )
    rows += compare_config(
        "classifier", "classifier/mnist_node_small", folder, 0.99, 3e-3, classifier_steps, n
    )
    return table(HEADER, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", help="folder of MNIST")
    print(f"{machine()}\n\n{run(**vars(parser.parse_args()))}")
