"""What Lightning brings along, in runs of the command line with STEER."""

import torch
from pytorch_lightning import Callback

import cli
from tests.cli.running import QUIET, toy_config, write


class Weights(Callback):
    """Keeps the weights after each step of the optimiser."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(vector(pl_module))


def vector(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().double()


def fit(*arguments):
    """Two epochs of two steps; the weights after each of them, and the command line's objects."""
    kept = "--trainer.callbacks+=tests.cli.test_lightning.Weights"
    main = cli.main(["fit", "--config", write(toy_config()), kept, *arguments, *QUIET])
    (weights,) = (c for c in main.trainer.callbacks if type(c).__name__ == "Weights")
    return weights.steps, main


def test_the_batch_size_finder():
    finder = "--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.max_trials=2"
    steps, main = fit(*finder, "--trainer.callbacks.steps_per_trial=1", "--data.n_train=32")
    assert main.datamodule.batch_size == 4  # 2, and 4 after one more trial
    assert len(steps) == 2 * 32 // 4


def test_stochastic_weight_averaging(folder):
    averaging = "--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"
    epochs = "--trainer.callbacks.swa_epoch_start=2", "--trainer.max_epochs=3"
    steps, main = fit(*averaging, *epochs)
    ends = steps[1], steps[3]  # of the epochs before those that average: it looks as they begin
    torch.testing.assert_close(vector(main.model), sum(ends) / 2, rtol=1e-5, atol=1e-7)
    config = folder / main.trainer.log_dir / "config.yaml"
    cli.main(["validate", "--config", str(config), *QUIET])
