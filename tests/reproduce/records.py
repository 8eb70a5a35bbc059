"""Hand-written records and an experiment to compare them."""

import os
import signal

from matplotlib.figure import Figure
from pytorch_lightning import Callback

from reproduce.experiments import Comparison, Experiment, Metric, Variant
from reproduce.records import Record
from steer_lightning.callbacks.training_clock import Check

BASELINE = Variant("without", "cnf/toy1d", paper="0.50")
STEER = Variant("STEER", "cnf/toy1d", ("--steer.b=0.5",), paper="0.60")
ACCURACY = Metric("test/accuracy", "accuracy, %", "higher", 100.0, 1)
MACHINE = {
    "python": "3.11.7",
    "versions": {"torch": "2.15.0"},
    "cpu": "Some CPU",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "commit": "0123456789abcdef",
    "dirty": False,
}


def checks(values, seconds=10.0, nfe=100.0):
    """Checks at even distances, one for each value of ``val/accuracy``."""
    return [
        Check(
            step=i + 1,
            epoch=0,
            seconds=2 * seconds * (i + 1),
            cpu_seconds=seconds * (i + 1),
            nfe_forward=nfe * (i + 1),
            nfe_backward=0.5 * nfe * (i + 1),
            metrics={"val/accuracy": value},
        )
        for i, value in enumerate(values)
    ]


def record(seed, accuracy, history=(0.1, 0.2), **changes):
    fields = {
        "seed": seed,
        "status": "finished",
        "values": {"test/accuracy": accuracy, "test/nfe_forward": 26.0, "test/batches": 5.0},
        "checks": checks(history),
        "monitor": "val/accuracy",
        "mode": "max",
        "machine": MACHINE,
    }
    return Record(**{**fields, **changes})


def experiment(metrics=(ACCURACY,), **changes):
    fields = {
        "name": "table9",
        "title": "Table 9: an example",
        "comparisons": (Comparison("MNIST", BASELINE, (STEER,)),),
        "metrics": metrics,
        "scale": "short",
        "cut": "One epoch of ten.",
        "seeds": 2,
        "draw": lambda experiment, results: Figure(),
    }
    return Experiment(**{**fields, **changes})


class Alarm(Callback):
    """Lets the time be up in the fourth batch of a run, once."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGALRM)


class EarlyAlarm(Callback):
    """Lets the time be up before training."""

    def setup(self, trainer, pl_module, stage):
        signal.raise_signal(signal.SIGALRM)


class Terminate(Callback):
    """Tells the process to end."""

    def on_train_batch_start(self, trainer, *_):
        signal.raise_signal(signal.SIGTERM)


class Crash(Callback):
    """Ends the process at once."""

    def on_train_start(self, trainer, pl_module):
        os._exit(3)
