"""Evaluations saved by the first step of the last batch, with STEER and without.

Forward and backward passes after some training, batch after batch at the same weights, of the 2-D
flow and, if there is MNIST in the folder of data, of the small image flow and the small classifier
of the configs, at their tolerances.

``python -m benchmarks.first_step``
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.configs import DATA_DIR, build
from benchmarks.timing import Contender, machine, measure
from benchmarks.toy_flow import TRAINING_STEPS, make_batches, make_field
from steer_lightning import steer
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF
from steer_lightning.solvers import AdaptiveSolver, TorchdiffeqSolver


def with_first_step(module: Any, first_step: Any) -> Any:
    """A copy whose blocks begin like this, at the tolerances that they have."""
    module = copy.deepcopy(module)
    for block in module.modules():
        solver = getattr(block, "solver", None)
        if isinstance(solver, AdaptiveSolver | TorchdiffeqSolver):
            block.solver = AdaptiveSolver("dopri5", solver.rtol, solver.atol, None, first_step)
    return module


def loss_of_next_batch(module: Any, batches: Sequence[Any], b: float) -> Callable[[], Tensor]:
    """The loss of one batch after the other, the end time drawn with half-width ``b``."""
    numbers = count()

    def loss() -> Tensor:
        step = next(numbers)
        with steer(module, b=b, step=step, seed=0) if b else nullcontext():
            value: Tensor = module.evaluate(batches[step % len(batches)])["loss"]
            return value

    return loss


def compare(name: str, module: Any, batches: Sequence[Any], b: float) -> str:
    """Means over all batches but the first, without STEER and with it."""
    tables = []
    for width in (0.0, b):
        contenders = {}
        for first_step in ("auto", "previous"):
            contender = with_first_step(module, first_step)
            loss = loss_of_next_batch(contender, batches, width)
            contenders[f'`first_step="{first_step}"`'] = Contender(contender, loss)
        tables.append(measure(f"{name}, b = {width:g}", contenders, repeats=len(batches) - 1))
    return "\n\n".join(tables)


def compare_config(
    name: str, config: str, data_dir: Path, b: float, lr: float, n_train: int, n: int
) -> str:
    """Tables of the model of a config, after so many steps, over so many batches."""
    torch.manual_seed(0)
    module, data = build(config, f"--data.init_args.data_dir={data_dir}")
    data.prepare_data()
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), n_train + n))
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for batch in batches[:n_train]:
        Contender(module, lambda batch=batch: module.evaluate(batch)["loss"]).step()
        optimizer.step()
    return compare(f"{name} after {n_train} steps", module, batches[n_train:], b)


def run(
    folder: Path = DATA_DIR / "mnist",
    training_steps: int = TRAINING_STEPS,
    n: int = 21,
    image_steps: tuple[int, int] = (20, 200),
) -> str:
    """Measure over ``n`` batches, and tell as Markdown tables."""
    flow = CNFModule(CNF(make_field(training_steps), (2,)))
    batches = make_batches(training_steps + n)[training_steps:]
    tables = [compare(f"2-D flow after {training_steps} steps", flow, batches, b=0.5)]
    if not folder.exists():
        tables.append(f"Images left out: {folder} does not exist; give STEER_DATA_DIR.")
        return "\n\n".join(tables)
    for name, config, b, lr, n_train, n_batches in (
        ("image flow", "cnf/mnist_small_ffjord", 0.5, 1e-3, image_steps[0], max(2, n // 5)),
        ("classifier", "classifier/mnist_node_small", 0.99, 3e-3, image_steps[1], n),
    ):
        tables.append(compare_config(name, config, folder, b, lr, n_train, n_batches))
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(f"{machine()}\n\n{run()}")
