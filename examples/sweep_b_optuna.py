"""Search for b and a penalty's weight with Optuna: pruned, kept in a file, resumed by itself.

``python examples/sweep_b_optuna.py --trials 20`` takes a minute on a CPU. Stop it and start it
again: it goes on with what ``sweep_b.db`` holds.
"""

import argparse

import optuna
import torch

from steer_lightning import penalize, penalty, steer
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.penalties import Acceleration

N_CHECKS, EPOCH = 5, 40  # checks of a trial, steps before each


def objective(trial):
    """Worst validation loss over end times of evaluation in [0.5, 1.5]."""
    b = trial.suggest_float("b", 0.0, 0.95)
    weight = trial.suggest_float("acceleration", 1e-4, 1.0, log=True)
    torch.manual_seed(0)
    block = ODEBlock(MLPField(2, (32,)))
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
    y0_val, end_times = torch.randn(512, 2), torch.tensor([0.0, 0.5, 0.75, 1.0, 1.25, 1.5])
    for step in range(N_CHECKS * EPOCH):
        with (
            steer(block, b=b, step=step, seed=0),
            penalize(block, [Acceleration(weight)], step=step, seed=0),
        ):
            loss = (block(torch.randn(128, 2)).norm(dim=1) - 1.0).square().mean()
            (loss + penalty(block)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EPOCH == 0:
            with torch.no_grad():
                states = block.eval()(y0_val, end_times)[1:]
            block.train()
            worst = (states.norm(dim=2) - 1.0).square().mean(1).max().item()
            trial.report(worst, step)
            if trial.should_prune():
                raise optuna.TrialPruned
    return worst


def main(trials=20, storage="sqlite:///sweep_b.db"):
    """Bring the study to so many trials; the study."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(
        storage=storage, study_name="sweep_b", pruner=pruner, load_if_exists=True
    )
    done = [trial for trial in study.trials if trial.state.is_finished()]
    study.optimize(objective, n_trials=max(0, trials - len(done)))
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="trials in all")
    study = main(parser.parse_args().trials)
    print(f"best of {len(study.trials)}: {study.best_params}, worst loss {study.best_value:.5f}")
