"""A failed batch solved again on a fixed grid."""

import pytest
import torch

from steer_lightning import NFEMonitor, SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.solvers import (
    FixedGridSolver,
    TorchdiffeqSolver,
)
from tests.helpers.faults import (
    FAULTS,
    HEALABLE,
    MARKS,
    MAX_NFE,
    FaultyField,
    FaultyModel,
    Steps,
    assert_same,
    fit,
    scaled,
    state_of,
    untouched,
)
from tests.helpers.models import seeded

each_fault = pytest.mark.parametrize("fault", FAULTS)


class Noisy(FaultyModel):
    """Draws from the global stream and from its own, and keeps what it drew."""

    def __init__(self, gradient="autograd"):
        super().__init__(gradient)
        self.stream_count = 0
        self.drawn = []

    def loss(self, batch):
        self.stream_count += 1
        noise = torch.rand(())
        self.drawn.append((self.stream_count, float(noise)))
        return super().loss(batch) + 0.0 * noise


@pytest.mark.parametrize("fault", HEALABLE)
@pytest.mark.parametrize("steer_first", [True, False])
def test_fallback_solves_again_to_the_same_end_with_the_same_noise(fault, steer_first):
    model, guard = seeded(Noisy, "adjoint"), SolverGuard("fallback", fallback_steps=7)
    steps, steer = Steps(), SteerCallback(0.5, seed=0)
    before, after = ([steer], [steps]) if steer_first else ([], [steer, steps])
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        fit(guard, "none", fault, "none", model=model, before=before, after=after)
    if fault == "adjoint":  # whose forward solve is not repeated
        assert [count for count, _ in model.drawn] == [1, 2, 3]
    else:
        assert [count for count, _ in model.drawn] == [1, 2, 2, 3]
        assert model.drawn[1] == model.drawn[2]
    ends = [logged["steer/block.horizon/end_time"] for logged in steps.logged]
    assert model.ends[-2] == pytest.approx(ends[1], abs=1e-5)
    assert len({round(end, 4) for end in ends}) == 3
    assert [logged["solver/fallbacks"] for logged in steps.logged] == [0.0, 1.0, 1.0]
    assert guard.state_dict() == {"skipped": 0, "fallbacks": 1}
    assert untouched(model)


@pytest.mark.parametrize("fault", HEALABLE)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fallback_takes_the_step_of_a_fixed_grid(fault, accumulate):
    """The same as a model that has the fixed grid for that batch from the beginning.

    Where the adjoint failed, the values are those of the forward solve, which did not.
    """

    class Fixed(FaultyModel):
        def training_step(self, batch, batch_idx):
            self.is_fixed = batch_idx == 1
            return super().training_step(batch, batch_idx)

        def forward(self, y0):
            if not self.is_fixed:
                return self.block(y0)
            own, self.block.solver = self.block.solver, FixedGridSolver("rk4", 8)
            y = self.block(y0)
            self.block.solver = own
            return y if fault == "budget" else self.block(y0).detach() + (y - y.detach())

    faults = ("none", fault, "none", "none")
    expected = fit(
        None, *faults, model=seeded(Fixed, "adjoint"), accumulate_grad_batches=accumulate
    )
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = fit(
            SolverGuard("fallback", fallback_steps=8), *faults,
            gradient="adjoint", accumulate_grad_batches=accumulate,
        )  # fmt: skip
    assert_same(state_of(found), state_of(expected))


@pytest.mark.parametrize("fault", ["nan", "blow-up"])
def test_what_a_fixed_grid_cannot_solve_either_is_dropped(fault):
    expected = fit(None, "none", "none")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match="solved again on a fixed grid, or dropped"):
        found = fit(guard, "none", fault, "none")
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


def test_a_fallback_whose_gradient_is_not_finite_is_dropped():
    class Steep(FaultyModel):
        """Its loss is finite on a fixed grid, its gradient is not."""

        def loss(self, batch):
            loss = super().loss(batch)
            if not isinstance(self.block.solver, TorchdiffeqSolver):
                loss = loss + (self.block.vector_field.w * 0.0).sum().sqrt()
            return loss

    expected = fit(None, "none", "none")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = fit(guard, "none", "budget", "none", model=seeded(Steep))
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


def test_the_step_runs_once_when_the_adjoint_failed():
    class Logs(FaultyModel):
        def training_step(self, batch, batch_idx):
            self.log("calls", float(len(self.ends)), on_step=False, on_epoch=True)
            return self.loss(batch)

    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        trainer = fit(SolverGuard("fallback"), "none", "adjoint", model=seeded(Logs, "adjoint"))
    assert len(trainer.lightning_module.ends) == 2
    assert float(trainer.callback_metrics["calls"]) == 0.5


def test_a_fallback_s_gradient_is_scaled_like_any_other():
    states = []
    for settings in ({}, scaled()[0]):
        guard = SolverGuard("fallback")
        with pytest.warns(UserWarning, match="solved again on a fixed grid"):
            found = fit(guard, "none", "adjoint", "none", gradient="adjoint", **settings)
        assert guard.fallbacks == 1
        states.append(state_of(found))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5)


def test_what_has_no_gradient_on_a_fixed_grid_after_a_failed_adjoint_is_dropped():
    class NoGradient(FaultyField):
        def forward(self, t, y):
            dy = super().forward(t, y)
            if bool((y[:, 2] == MARKS["adjoint"]).any()):
                dy = dy + (0.0 * self.w).sum().sqrt()
            return dy

    model = seeded(FaultyModel, "adjoint")
    model.block.vector_field = seeded(NoGradient)
    expected = fit(None, "none", "none", gradient="adjoint")
    guard = SolverGuard("fallback")
    with pytest.warns(UserWarning, match=r"NaN or infinite at t = .* in the backward solve"):
        found = fit(guard, "none", "adjoint", "none", model=model)
    assert_same(state_of(found), state_of(expected))
    assert guard.state_dict() == {"skipped": 1, "fallbacks": 0}


@pytest.mark.parametrize("fault", HEALABLE)
def test_after_a_drop_the_rest_of_the_window_is_not_tried_again(fault):
    guard = SolverGuard("fallback")
    expected = fit(None, "none", "none", gradient="adjoint", accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="or dropped if that fails too"):
        found = fit(
            guard, "none", "none", "nan", fault,
            gradient="adjoint", accumulate_grad_batches=2,
        )  # fmt: skip
    assert guard.state_dict() == {"skipped": 2, "fallbacks": 0}
    assert_same(state_of(found), state_of(expected))


def test_evaluations_of_both_attempts_are_counted():
    reads = Steps()
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        fit(
            SolverGuard("fallback", fallback_steps=5), "budget", gradient="adjoint",
            before=[NFEMonitor()], after=[reads],
        )  # fmt: skip
    # The budget, then five steps of four; the checkpointed steps are evaluated again.
    assert reads.logged[0]["train/nfe_forward"] == MAX_NFE + 20
    assert reads.logged[0]["train/nfe_backward"] == 20
