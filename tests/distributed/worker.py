"""Everything that is checked on two ranks, run in one pair of processes; keeps what it found.

``torchrun --nproc_per_node=2 worker.py FOLDER``, as ``test_two_ranks.py`` starts it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

import cli
from datamodules import ToyDensityDataModule
from datamodules.base import TensorData, TensorDataModule
from steer_lightning import NFEMonitor, PenaltyCallback, SteerCallback, steer
from steer_lightning.callbacks import (
    EndTimeSweep,
    FlowPlot,
    LastCheckpoint,
    SampleGrid,
    SampleWriter,
    StepMemories,
    TrainingClock,
)
from steer_lightning.guard import SolverGuard
from steer_lightning.penalties import KineticEnergy
from steer_lightning.solvers import AdaptiveSolver, SolveStats
from steer_lightning.utils.schedule import Schedule
from tests.cli.running import CONFIGS, DATA, FLOW, QUIET
from tests.distributed import guard_runs, tasks
from tests.helpers.models import ClockField, ForeignModel, OwnModel, seeded, tiny_data, tiny_loader
from tests.modules.cases import CASES
from tests.test_resume import run_task

RANK = int(os.environ.get("RANK", "0"))  # pytest imports this file, too
FOLDER = Path(sys.argv[-1])


def all_gradients() -> dict[str, Any]:
    found = {}
    mine = slice(RANK * tasks.HALF, (RANK + 1) * tasks.HALF)
    for variant, gradient in tasks.MODES:
        with tasks.same_noise():
            found[variant, gradient] = tasks.gradients(FOLDER, variant, gradient, mine, 2)
    with tasks.same_noise():
        found["cnf", "accumulated"] = tasks.gradients(FOLDER, "cnf", "autograd", mine, 2, 2)
    for variant in ("image flow", "latent ode"):
        found[variant, "own noise"] = tasks.gradients(FOLDER, variant, "autograd", mine, 2)
    return found


def all_evaluations() -> dict[str, Any]:
    found = {}
    for variant in tasks.VARIANTS:
        with tasks.same_noise():
            found[variant] = tasks.evaluation(FOLDER, variant, 2)
    return found


def fit_clock(*callbacks: Callback, model: LightningModule | None = None, max_epochs: int = 2):
    """Fit a model that tells its end times, on four batches of which each rank has two."""
    model = seeded(OwnModel) if model is None else model
    settings = {"n_ranks": 2, "max_epochs": max_epochs, "precision": 32}
    tasks.make_trainer(FOLDER, *callbacks, **settings).fit(model, tiny_loader(8, batch_size=2))
    return model


def end_times(scope: str, model_class: type = OwnModel, **fields: Any):
    """End times of two epochs of training, and the seed they were drawn with."""
    callback = SteerCallback(b=0.5, scope=scope, **fields)
    return fit_clock(callback, model=seeded(model_class)).ends, callback.seed


def all_end_times() -> dict[str, Any]:
    torch.manual_seed(100 + RANK)
    found = {scope: end_times(scope) for scope in ("batch", "rank")}
    found["attached"] = end_times("batch", ForeignModel, vector_fields=["func"])
    model = seeded(OwnModel)
    with steer(model, b=0.5, step=0) as ends:
        model(tiny_data(2))
        found["steer"] = dict(ends)
    os.environ["PL_GLOBAL_SEED"] = str(7 + RANK)
    found["global seed"] = end_times("batch")
    del os.environ["PL_GLOBAL_SEED"]
    return found


class SeesTimes(KineticEnergy):
    """Keeps the times that it has looked at."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.times: list[float] = []

    def value(self, probed):
        self.times.append(float(probed.t[0]))
        return super().value(probed)


def probe_times() -> dict[str, Any]:
    """Probe times of two epochs, the seed they were drawn with, and the weights after them."""
    torch.manual_seed(100 + RANK)
    callback = PenaltyCallback(sees := SeesTimes())
    weights = [p.detach() for p in fit_clock(callback).parameters()]
    return {"times": sees.times, "seed": callback.seed, "weights": weights}


class Costs(LightningModule):
    """A block that says it needed as many evaluations as the first number of the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(1, 1)
        self.block.stats = SolveStats()

    def validation_step(self, batch, batch_idx):
        for _ in range(int(batch[0][0])):
            self.block.stats.count("nfe")

    test_step = validation_step


class Numbers(TensorDataModule):
    def __init__(self, n: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.n = n

    def build(self, split):
        return TensorData((torch.arange(self.n, dtype=torch.float32)[:, None],))


def nfe() -> dict[str, float]:
    trainer = tasks.make_trainer(FOLDER, NFEMonitor(), n_ranks=2, precision=32)
    model, data = Costs(), Numbers(tasks.N, batch_size=2)
    (val,) = trainer.validate(model, data, verbose=False)
    (test,) = trainer.test(model, data, verbose=False)
    return {**val, **test}


def fit_with_buffers() -> dict[str, float]:
    """Train with validation, in which one rank has one batch more, of a model with buffers.

    The progress bar of the first rank asks for means of an epoch that all ranks reduce.
    """
    shown = {"enable_progress_bar": True, "enable_checkpointing": True, "val_check_interval": 2}
    callbacks = (NFEMonitor(), LastCheckpoint(dirpath=FOLDER / "shown"))
    trainer = tasks.make_trainer(FOLDER, *callbacks, n_ranks=2, max_epochs=2, **shown)
    trainer.fit(tasks.normed_classifier(), tasks.Samples("classifier"))
    metrics = trainer.callback_metrics
    return {k: float(v) for k, v in metrics.items() if k.startswith("val/")}


def plots() -> int:
    """Draw and write everything; how many figures this rank has saved."""
    saved, savefig = [], Figure.savefig
    Figure.savefig = lambda self, *args, **kwargs: (
        saved.append(1),
        savefig(self, *args, **kwargs),
    )
    run = FOLDER / "plots"
    callbacks = (FlowPlot(1), EndTimeSweep(0.2, n_points=3), NFEMonitor(), TrainingClock())
    trainer = tasks.make_trainer(
        run, *callbacks, n_ranks=2, max_epochs=1, precision=32, logger=CSVLogger(run, name="cnf"),
        log_every_n_steps=1,
    )  # fmt: skip
    data = ToyDensityDataModule(n_train=16, n_val=13, n_test=13, batch_size=4, eval_batch_size=2)
    module = tasks.build("cnf").float()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    trainer = tasks.make_trainer(
        run, SampleGrid(2, (1.0,)), SampleWriter(), n_ranks=2, logger=CSVLogger(run, name="images")
    )
    module, images = tasks.build("image flow"), tasks.Samples("image flow")
    trainer.validate(module, images, verbose=False)
    trainer.predict(module, images)
    Figure.savefig = savefig
    return len(saved)


def resumed() -> dict[str, Any]:
    """Two epochs at a stretch, and again from the middle of the first one."""

    def run(folder, ckpt_path=None):
        strategy = DDPStrategy(process_group_backend="gloo")
        penalties = PenaltyCallback(KineticEnergy(Schedule(1.0, 0.1, 4)))
        case = CASES["image flow"]
        return run_task(case, folder, ckpt_path, penalties, devices=2, strategy=strategy)

    found = {"whole": run(FOLDER / "whole")}
    return {**found, "resumed": run(FOLDER / "resumed", FOLDER / "whole" / "2.ckpt")}


class Faster(ClockField):
    """Changes in time faster on the second rank."""

    def forward(self, t, y):
        return super().forward((1.0 + 8.0 * RANK) * t, y)


def first_steps() -> dict[str, Any]:
    """Steps of this rank and those agreed on, of batches that are stiffer on the second rank."""
    own: list[float] = []
    agreed: list[dict[int, tuple[float, float]]] = []

    class Listening(StepMemories):
        def on_train_batch_end(self, trainer, pl_module, *args):
            own.append(pl_module.block.step_memory.steps[1][1])
            super().on_train_batch_end(trainer, pl_module, *args)
            agreed.append(dict(pl_module.block.step_memory.steps))

    model = seeded(OwnModel)
    model.block.solver = AdaptiveSolver("tsit5", 1e-8, 1e-8, first_step="previous")
    model.block.vector_field = Faster()
    fit_clock(SolverGuard(), Listening(), model=model, max_epochs=1)
    return {"own": own, "agreed": agreed}


def arguments(command: str, *more: str) -> list[str]:
    """A small flow of points, from the command line."""
    data = {"n_train": 21, "n_val": 13, "n_test": 13, "batch_size": 4, "eval_batch_size": 2}
    small = [f"{FLOW}.vector_field.init_args.hidden=[4]"]
    small += [f"{DATA}.{name}={number}" for name, number in data.items()]
    config = f"--config={CONFIGS / 'cnf/toy2d.yaml'}"
    return [command, config, "--steer.b=0.5", *QUIET, *small, *more]


def command_line() -> None:
    """As ``torchrun cli.py fit`` does; last, as it seeds the process."""
    os.chdir(FOLDER)
    sys.argv = ["cli.py"]
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    cli.main(arguments("fit", *ranks, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for job in (
        all_gradients, all_evaluations, all_end_times, probe_times, first_steps, nfe,
        fit_with_buffers, plots, resumed, guard_runs.all_runs, command_line,
    ):  # fmt: skip
        print(f"--- {job.__name__}", flush=True)
        found[job.__name__] = job()
    torch.save(found, FOLDER / f"{RANK}.pt")
