"""Failures in evaluation, which end a run; those of two ranks are in tests/distributed."""

import pytest

from steer_lightning.guard import SolverGuard
from steer_lightning.solvers import NFEBudgetExceededError
from tests.helpers.faults import FaultyModel, loader, untouched
from tests.helpers.models import seeded, tiny_trainer


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_always_raises_with_the_place(policy, stage):
    model = seeded(FaultyModel)
    name = {"validate": "validation"}.get(stage, stage)
    with pytest.raises(
        NFEBudgetExceededError, match=rf"block 'block', .*{name}, epoch 0, batch 1, rank 0\."
    ):
        getattr(tiny_trainer(SolverGuard(policy)), stage)(model, loader("none", "budget"))


def test_validation_within_a_fit_raises_too():
    model = seeded(FaultyModel)
    with pytest.raises(NFEBudgetExceededError, match=r"validation, epoch 0, batch 1, rank 0\."):
        tiny_trainer(SolverGuard("skip"), num_sanity_val_steps=0).fit(
            model, loader("none"), loader("none", "budget")
        )
    assert untouched(model)
