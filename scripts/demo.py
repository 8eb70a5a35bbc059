"""Train a small flow four ways through the command line, and print what each costs and brings.

One to two minutes on two CPU cores. Arguments are passed on to ``cli.py fit``.
"""

import csv
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import main  # noqa: E402

CONFIG = str(ROOT / "configs/cnf/toy2d.yaml")
B, N_STEPS = 0.5, 160
# A third of the config's training, and no more than the table needs.
SHORT = [
    "--trainer.max_epochs=2", "--data.n_train=10240", "--data.batch_size=128",
    "--data.n_test=2000", "--trainer.logger.init_args.save_dir=logs/demo",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
VARIANTS = {
    "none": [],
    f"STEER, b = {B}": [f"--steer.b={B}"],
    f"STEER, b = {B} to 0": [f"--steer.b={{start: {B}, end: 0.0, length: {N_STEPS}}}"],
    "acceleration": ["--penalties.acceleration=0.1"],
}


class Result(NamedTuple):
    """Numbers of one run, log-likelihoods in nats, and where its files are."""

    at_t1: float
    worst: float
    nfe_test: float
    nfe_train: float
    seconds: float
    folder: Path


def run(arguments: list[str]) -> Result:
    """Fit and test; the test uses the weights of the last step."""
    fit = main(["fit", "--config", CONFIG, *arguments])
    trained = {name: float(value) for name, value in fit.trainer.callback_metrics.items()}
    (tested,) = fit.trainer.test(fit.model, datamodule=fit.datamodule, verbose=False)
    folder = Path(fit.trainer.log_dir)
    with (folder / "plots/end_time_sweep_test.csv").open() as file:
        sweep = [float(row["nll"]) for row in csv.DictReader(file)]
    return Result(
        at_t1=-tested["test/nll"],
        worst=-max(sweep),
        nfe_test=tested["test/nfe_forward"],
        nfe_train=trained["train/nfe_forward_epoch"],
        seconds=trained["train/cpu_seconds"],
        folder=folder,
    )


def report(results: dict[str, Result]) -> str:
    """A table of the runs, where their plots are, and how to watch them."""
    columns = "8 Gaussians, one seed", "at t1", f"worst, t1 +- {B}", "NFE, test", "NFE, train"
    lines = ["", "{:<24}{:>10}{:>18}{:>12}{:>12}{:>14}".format(*columns, "training, s")]
    lines += [
        f"{name:<24}{r.at_t1:>10.3f}{r.worst:>18.3f}{r.nfe_test:>12.1f}{r.nfe_train:>12.1f}"
        f"{r.seconds:>14.1f}"
        for name, r in results.items()
    ]
    lines += [
        "Test log-likelihood in nats, evaluated at t1 and at the worst of eleven end times around",
        "it; evaluations of the vector field in a batch, those of training in the last epoch;",
        "processor seconds. One seed of a short training: docs/results has intervals.",
        "",
        "Plots (flow, and log-likelihood against the end time of evaluation):",
        *(f"  {r.folder / 'plots'}" for r in results.values()),
        "",
        f"Curves and table: {Path(sys.executable).parent / 'tensorboard'} --logdir logs/demo",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{len(VARIANTS)} runs of {N_STEPS} steps: about a minute on two CPU cores.", flush=True)
    started, results = time.perf_counter(), {}
    given, sys.argv = sys.argv[1:], sys.argv[:1]
    for name, arguments in VARIANTS.items():
        print(f"\n--- {name}", flush=True)
        results[name] = run([*SHORT, *arguments, *given])
    print(report(results))
    print(f"It took {time.perf_counter() - started:.0f} s.")
