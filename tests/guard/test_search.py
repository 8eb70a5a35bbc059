"""A search for a learning rate in which a solve fails."""

import pytest
from pytorch_lightning.callbacks import LearningRateFinder

from steer_lightning.guard import SolverGuard
from tests.helpers.faults import FAULTS, FaultyModel, fit, untouched
from tests.helpers.models import seeded

N_TAME = 12


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_solve_ends_the_search_and_not_the_run(fault, caplog):
    gradient, error_class, _ = FAULTS[fault]
    faults = [*["none"] * N_TAME, fault, "none", "none"]

    def search(*guard):
        model = seeded(FaultyModel, gradient)
        model.lr = 0.0
        finder = LearningRateFinder(1e-4, 1e-1, len(faults), early_stop_threshold=None)
        # The training that follows stops before the batch that fails.
        return finder, fit(None, *faults, model=model, before=[finder, *guard], max_steps=2)

    with pytest.raises(error_class):
        search()
    finder, trainer = search(SolverGuard())
    assert "The search for a learning rate ends where a solve fails: " in caplog.text
    assert len(finder.optimal_lr.results["lr"]) == N_TAME + 1
    assert trainer.lightning_module.lr == finder.optimal_lr.suggestion() > 0.0
    assert trainer.global_step == 2
    assert untouched(trainer.lightning_module)


def test_other_errors_go_on():
    class Broken(FaultyModel):
        lr = 0.0

        def training_step(self, batch, batch_idx):
            raise KeyError("mine")

    callbacks = LearningRateFinder(num_training_steps=3), SolverGuard()
    with pytest.raises(KeyError, match="mine"):
        fit(None, "none", "none", "none", model=seeded(Broken), before=callbacks)
