"""Train a small flow with and without STEER through the command line, and print what came out."""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import main  # noqa: E402

# A third of the config's training, for about a minute on two CPU cores.
SHORT = ["--trainer.max_epochs=3", "--data.n_train=12800", "--data.batch_size=128"]


class Result(NamedTuple):
    """Numbers and plots of one run."""

    log_likelihood: float
    nfe_train: float
    nfe_test: float
    plots: list[Path]
    logs: Path


def run(config: str, extra: list[str]) -> Result:
    """Fit and test one config; the test uses the weights of the last step."""
    fit = main(["fit", "--config", str(ROOT / config), *extra])
    nfe_train = float(fit.trainer.callback_metrics["train/nfe_forward"])
    metrics = fit.trainer.test(fit.model, datamodule=fit.datamodule)[0]
    logs = Path(fit.trainer.log_dir or ".")
    return Result(
        log_likelihood=-metrics["test/nll"],
        nfe_train=nfe_train,
        nfe_test=metrics["test/nfe_forward"],
        plots=sorted((logs / "plots").glob("*_test.png")),
        logs=logs,
    )


def report(results: dict[str, Result]) -> str:
    """A table of the runs, where their plots are, and how to watch them."""
    lines = [
        "",
        f"{'8 Gaussians, one seed':<24}{'test log-likelihood':>20}{'NFE, last batch':>18}"
        f"{'NFE, test':>12}",
    ]
    lines += [
        f"{name:<24}{r.log_likelihood:>15.3f} nats{r.nfe_train:>18.0f}{r.nfe_test:>12.1f}"
        for name, r in results.items()
    ]
    lines += ["", "Plots (flow, and test loss against the evaluation end time):"]
    lines += [f"  {path}" for r in results.values() for path in r.plots]
    folder = next(iter(results.values())).logs.parents[1]
    lines += ["", f"Curves: {Path(sys.executable).parent / 'tensorboard'} --logdir {folder}"]
    return "\n".join(lines)


if __name__ == "__main__":
    overrides = [*SHORT, *sys.argv[1:]]
    results = {
        "without STEER": run("configs/cnf/toy2d.yaml", overrides),
        "with STEER, b = 0.5": run("configs/cnf/toy2d.yaml", ["--steer.b=0.5", *overrides]),
    }
    print(report(results))
