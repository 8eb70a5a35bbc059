"""One rank of the runs under a guard: faults in the batches of rank 1 alone."""

import os
import warnings

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset
from torchdiffeq import odeint

from steer_lightning import SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.solvers import SolverError
from tests.helpers.faults import FAULTS, FaultyModel, batches, state_of, untouched
from tests.helpers.models import seeded, tiny_trainer
from tests.helpers.watching import Log

ENDS = (
    "validation in fit",
    "validation in fit, unknown length",
    "validate",
    "validate, unknown length",
    "test",
)
RANK = int(os.environ.get("RANK", "0"))
Q = {"devices": 2, "use_distributed_sampler": False}


class Shared(FaultyModel):
    """Logs a value that is reduced over the ranks within the step, behind the solve."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("mean", float(batch_idx + 10 * RANK), sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self(batch).mean(), sync_dist=True)

    test_step = validation_step


class Foreign(Shared):
    """Evaluates by torchdiffeq's own solver."""

    def forward(self, batch):
        if self.training:
            return super().forward(batch)
        return odeint(self.block.vector_field, batch, torch.tensor([0.0, 1.0]))[-1]


def share(*faults):
    """This rank's batches; where rank 1 has a fault, rank 0 has none."""
    found = batches(*faults)
    if RANK == 0:
        (tame,) = batches("none")
        found = [b if f == "none" else tame for b, f in zip(found, faults, strict=True)]
    return DataLoader(found, batch_size=None)


class Endless(IterableDataset):
    """Batches of no known number."""

    def __init__(self, found):
        self.found = found

    def __iter__(self):
        return iter(self.found)


def run(guard, *faults, gradient="autograd", end="fit", steer=False, model=Shared, **settings):
    """What a rank saw of a run whose faults are those of rank 1."""
    own = share(*faults)
    module, steps = seeded(model, gradient), Log()
    callbacks = [SteerCallback(0.5, seed=0)] * steer + [guard] * (guard is not None) + [steps]
    # find_unused_parameters is False: the zero loss of a dropped batch reaches every parameter.
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    trainer = tiny_trainer(*callbacks, **{**Q, "strategy": strategy, **settings})
    found = {"error": None, "steps": steps.train}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stage, _, of_unknown_length = end.partition(", ")
            if of_unknown_length:
                own = DataLoader(Endless(own.dataset), batch_size=None)
            if stage == "validation in fit":
                trainer.fit(module, share("none", "none"), own)
            else:
                getattr(trainer, stage)(module, own)
        except SolverError as error:
            found["error"] = (type(error).__name__, str(error), error.rank, error.batch_idx)
    found["warnings"] = [str(w.message) for w in caught if "SolverGuard" in str(w.message)]
    if found["error"] is None and end == "fit":
        found["state"] = state_of(trainer)
    if guard is not None:
        found["counts"] = guard.state_dict()
    found["untouched"] = untouched(module)
    found["ends"] = module.ends
    return found


def all_runs():
    """Every run by name."""
    found, three = {}, ("none", "none", "none")
    for gradient in ("autograd", "adjoint"):
        found[f"reference {gradient}"] = run(None, *three, gradient=gradient)
        found[f"reference accumulated {gradient}"] = run(
            None, *three[:2], gradient=gradient, accumulate_grad_batches=2
        )
    for fault, (gradient, _, _) in FAULTS.items():
        found[f"raise {fault}"] = run(SolverGuard(), "none", fault, "none", gradient=gradient)
        found[f"skip {fault}"] = run(
            SolverGuard("skip"), "none", fault, "none", "none", gradient=gradient
        )
        found[f"skip accumulated {fault}"] = run(
            SolverGuard("skip"), *three, fault, gradient=gradient, accumulate_grad_batches=2
        )
    found["first"] = run(SolverGuard("skip"), "nan", "none")
    found["steer"] = run(SolverGuard("skip"), *three[:2], "nan", "none", steer=True)
    in_a_row = SolverGuard("skip", max_consecutive=2)
    found["in a row"] = run(in_a_row, "none", "nan", "nan", "none")
    for end in ENDS:
        found[end] = run(SolverGuard("skip"), "none", "budget", "none", end=end)
        found[f"first of {end}"] = run(SolverGuard(), "budget", "none", end=end)
    found["foreign"] = run(SolverGuard(), "none", "nan", "none", end="validate", model=Foreign)
    return found
