"""The fallback under this library's own tasks: their noise is drawn again, not on."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from steer_lightning import SteerCallback
from steer_lightning.guard import SolverGuard
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, MLPField
from steer_lightning.nn.series.latent_ode import LatentDecoder
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    NFEBudgetExceededError,
    TorchdiffeqSolver,
)
from tests.helpers.faults import assert_same, state_of
from tests.helpers.models import tiny_trainer


class _FailsAt:
    """Fails at one solve, or has another solver for it."""

    at = 2
    calls = 0
    substitute = None

    def solve(self, *args, **kwargs):
        self.calls += 1
        if self.calls != self.at:
            return super().solve(*args, **kwargs)
        if self.substitute is not None:
            return self.substitute.solve(*args, **kwargs)
        raise NFEBudgetExceededError(1, 0.0, "forward")


class Fails(_FailsAt, TorchdiffeqSolver):
    pass


class FailsDense(_FailsAt, AdaptiveSolver):
    pass


def flow_state(guard, substitute, scope):
    torch.manual_seed(0)
    solver = Fails(rtol=1e-3, atol=1e-3)
    solver.substitute = substitute
    flow = CNF(MLPField(2, (8,)), (2,), solver, trace_estimator="hutchinson")
    model = CNFModule(flow, optimizer=lambda params: torch.optim.Adam(params, lr=0.05))
    pl.seed_everything(1, verbose=False)
    data = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    trainer = tiny_trainer(SteerCallback(0.5, scope=scope, seed=0), guard)
    trainer.fit(model, DataLoader(data, batch_size=4))
    return state_of(trainer) | {"noise": torch.tensor(model.stream_count)}


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_a_flow_is_solved_again_with_the_same_noise_and_end_times(scope):
    expected = flow_state(SolverGuard(), FixedGridSolver("rk4", 8), scope)
    guard = SolverGuard("fallback", fallback_steps=8)
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = flow_state(guard, None, scope)
    assert guard.fallbacks == 1
    assert found["noise"] == 4
    assert_same(found, expected)


class Follows(pl.LightningModule):
    def __init__(self, substitute):
        super().__init__()
        solver = FailsDense(rtol=1e-3, atol=1e-3)
        solver.substitute = substitute
        self.decoder = LatentDecoder(MLPField(2, (8,), time_dependent=False), solver)

    def training_step(self, batch, batch_idx):
        times = torch.tensor([0.0, 0.4, 1.0]).expand(len(batch), -1)
        lengths = torch.full((len(batch),), 3)
        return (self.decoder(batch[None], times, lengths) - 1.0).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def test_a_latent_ode_is_solved_again_on_a_grid_that_is_read_anywhere():
    def run(guard, substitute):
        torch.manual_seed(0)
        trainer = tiny_trainer(SteerCallback(None, seed=0), guard)
        trainer.fit(Follows(substitute), DataLoader(torch.ones(8, 2), batch_size=2))
        return state_of(trainer)

    expected = run(SolverGuard(), FixedGridSolver("rk4", 6))
    guard = SolverGuard("fallback", fallback_steps=6)
    with pytest.warns(UserWarning, match="solved again on a fixed grid"):
        found = run(guard, None)
    assert guard.fallbacks == 1
    assert_same(found, expected)
