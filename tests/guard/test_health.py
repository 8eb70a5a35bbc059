"""What the guard says before a solve fails."""

import warnings

import pytest
import torch
from torch import nn

from steer_lightning import NFEMonitor, SteerCallback, steer
from steer_lightning.guard import SolverGuard
from steer_lightning.guard.health import StepWatch, look_at_fields
from steer_lightning.nn import CNF, MLPField, ODEBlock
from steer_lightning.nn.series.latent_ode import LatentDecoder
from steer_lightning.solvers import AdaptiveSolver, FixedGridSolver, SolverError, TorchdiffeqSolver
from tests.helpers.faults import FaultyModel, loader, state_of
from tests.helpers.models import (
    ClockField,
    OwnModel,
    TinyModule,
    seeded,
    tiny_loader,
    tiny_trainer,
)
from tests.helpers.watching import Log, assert_same


def messages(guard, model=None, data=None, match="close to failing|defines no ODE", **settings):
    """The guard's warnings in a fit."""
    model = seeded(OwnModel) if model is None else model
    torch.manual_seed(0)  # dropout may drop the same twice
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_trainer(guard, **settings).fit(model, tiny_loader() if data is None else data)
    texts = [str(w.message) for w in caught]
    return [t for t in texts if any(part in t for part in match.split("|"))]


def test_a_run_in_good_health_hears_nothing():
    assert messages(SolverGuard()) == []
    assert messages(SolverGuard(), seeded(FaultyModel, "adjoint"), loader("none", "none")) == []


class Kinky(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, t, y):
        return self.w * torch.where((20.0 * t).floor() % 2 == 0, 0.0, 1e3) * torch.ones_like(y)


@pytest.mark.parametrize(
    ("gradient", "field", "settings", "trouble"),
    [
        (
            "autograd",
            None,
            {"min_dt": 10.0},
            r"a step of dt = 0\.\d+ is below min_dt = 10, with NFE = \d+ for one batch\. .*"
            r"Loosen rtol and atol",
        ),
        (
            "autograd",
            Kinky(),
            {"max_rejected": 0.2},
            r"\d+ of \d+ steps were rejected, a share of 0\.\d+ where max_rejected = 0\.2, with "
            r"NFE = ",
        ),
        (
            "adjoint",
            None,
            {"max_rejected": 0.1},
            r"\d+ of \d+ steps of the adjoint were rejected, a share of",
        ),
    ],
)
def test_a_block_that_is_close_to_failing_is_warned_of(gradient, field, settings, trouble):
    model = seeded(FaultyModel, gradient)
    model.block.solver.max_nfe = None
    model.block.vector_field = field or model.block.vector_field
    close = f"The solves of block 'block' are close to failing: {trouble}"
    with pytest.warns(UserWarning, match=close):
        tiny_trainer(SolverGuard(**settings)).fit(model, loader("adjoint"))


@pytest.mark.parametrize("monitor_first", [True, False])
def test_once_a_block_and_epoch_whoever_resets_the_counts(monitor_first):
    class Two(TinyModule):
        def __init__(self):
            super().__init__()
            self.a = ODEBlock(ClockField(), TorchdiffeqSolver())
            self.b = ODEBlock(ClockField(), TorchdiffeqSolver())
            self.fixed = ODEBlock(ClockField(), FixedGridSolver())

        def forward(self, y0):
            return self.fixed(self.b(self.a(y0)))

    guard, monitor = SolverGuard(min_dt=10.0), NFEMonitor()
    callbacks = [monitor, guard] if monitor_first else [guard, monitor]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_trainer(*callbacks, max_epochs=2).fit(seeded(Two), tiny_loader(12))
    blocks = [str(w.message).split("'")[1] for w in caught if "close to" in str(w.message)]
    assert blocks == ["a", "b", "a", "b"]


def test_the_evaluations_named_are_those_of_the_batch():
    class Reads(SolverGuard):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.nfe.append(pl_module.block.stats.nfe_forward)

    guard = Reads(min_dt=0.02)
    guard.nfe = []
    model = seeded(FaultyModel)
    model.block.solver.max_nfe = None
    (message,) = messages(guard, model, loader("none", "budget", "none"))
    assert f"with NFE = {guard.nfe[1] - guard.nfe[0]} for one batch" in message


class Dropping(nn.Module):
    """Dropout behind any field."""

    autonomous = True

    def __init__(self, inner, scale=1e-3):
        super().__init__()
        self.inner, self.drop, self.scale = inner, nn.Dropout(0.5), scale

    def forward(self, t, y):
        return self.scale * self.drop(self.inner(t, y))


def random_model(solver=None):
    model = seeded(OwnModel)
    model.block = ODEBlock(Dropping(ClockField(), 1.0), solver or TorchdiffeqSolver(max_nfe=100))
    return model


def test_a_random_field_is_named_before_the_budget_is_gone():
    model = random_model()
    with (
        pytest.warns(
            UserWarning,
            match=r"The vector field of block 'block', Dropping 'block\.vector_field', defines no "
            r"ODE: two evaluations at one point differ\. Suspected: Dropout "
            r"'block\.vector_field\.drop'\. .*\.eval\(\)",
        ),
        pytest.raises(SolverError, match=r"block 'block', .*batch 0"),
    ):
        tiny_trainer(SolverGuard()).fit(model, tiny_loader())


def test_it_is_said_once_a_fit():
    model = random_model(FixedGridSolver("euler", 2))
    guard = SolverGuard()
    assert len(messages(guard, model, max_epochs=2)) == 1
    assert len(messages(guard, model)) == 1
    assert "solve" not in vars(model.block.solver)


def test_a_block_used_twice_is_named_once_and_a_function_by_its_name():
    class Twice(TinyModule):
        def __init__(self):
            super().__init__()
            self.block = random_model(FixedGridSolver("euler", 2)).block
            self.solver = FixedGridSolver("euler", 2)

        def training_step(self, batch, batch_idx):
            def drawn(t, y):
                return torch.randn_like(y)

            y = self.block(self.block(batch))
            return self.solver.solve(drawn, y, torch.tensor([0.0, 1.0])).ys.mean()

    block, function = messages(SolverGuard(), seeded(Twice))
    assert "block 'block', Dropping 'block.vector_field'," in block
    assert "block that keeps no counts, drawn, defines no ODE" in function


def test_it_can_be_an_error_or_left_alone():
    with pytest.raises(ValueError, match=r"'block', .* defines no ODE: two evaluations"):
        tiny_trainer(SolverGuard(random_fields="raise")).fit(random_model(), tiny_loader())
    model = random_model(FixedGridSolver("euler", 2))
    assert messages(SolverGuard(random_fields="ignore"), model) == []


def test_eval_mode_is_a_remedy():
    class Calm(nn.Dropout):
        def train(self, mode=True):
            return super().train(False)

    model = random_model()
    model.block.vector_field.drop = Calm().eval()
    assert messages(SolverGuard(), model) == []


class Noise(ClockField):
    def forward(self, t, y):
        return super().forward(t, y) + torch.randn_like(y)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, t, y):
        return torch.tanh(self.norm(y))


@pytest.mark.parametrize(
    ("field_class", "expected"),
    [
        (Normed, "every evaluation changes its buffers. Suspected: BatchNorm1d "),
        (Noise, "two evaluations at one point differ. Suspected: noise that its forward draws."),
    ],
)
def test_what_is_random_is_named(field_class, expected):
    model = random_model(FixedGridSolver("euler", 2))
    model.block.vector_field = field_class()
    (message,) = messages(SolverGuard(), model)
    assert f"defines no ODE: {expected}" in message


def test_a_flow_and_a_latent_ode_are_looked_into():
    class Both(TinyModule):
        def __init__(self):
            super().__init__()
            self.flow = CNF(
                Dropping(MLPField(2, (4,))),
                (2,),
                FixedGridSolver("euler", 2),
                trace_estimator="hutchinson",
            )
            field = MLPField(2, (4,), time_dependent=False)
            self.latent = LatentDecoder(Dropping(field), AdaptiveSolver(rtol=1e-1, atol=1e-1))

        def training_step(self, batch, batch_idx):
            times = torch.tensor([[0.0, 0.5], [0.0, 1.0]])
            z = self.latent(torch.ones(1, 2, 2), times, torch.tensor([2, 2]))
            return self.flow.log_prob(batch).mean() + z.sum()

    found = messages(SolverGuard(), seeded(Both))
    assert [message.split("'")[1::2] for message in found] == [
        ["latent", "latent.vector_field", "latent.vector_field.drop"],
        ["flow", "flow.vector_field", "flow.vector_field.drop"],
    ]


@pytest.mark.parametrize("solver", [TorchdiffeqSolver(), FixedGridSolver("rk4", 2)])
def test_looking_disturbs_neither_stream_nor_buffers_nor_counts(solver):
    class Draws(OwnModel):
        """Noise outside of the field, running statistics inside of it."""

        def __init__(self):
            super().__init__()
            self.block = ODEBlock(Normed(), solver)
            self.numbers = []

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.numbers.append(float(torch.rand(())))
            return loss

    seen = []
    for random_fields in ("warn", "ignore"):
        model, steps = seeded(Draws), Log()
        monitors = NFEMonitor(), NFEMonitor(["block.vector_field"])
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = tiny_trainer(
                SolverGuard(random_fields=random_fields), SteerCallback(0.5, seed=0), steps,
                monitors[0],
            )  # fmt: skip
            trainer.fit(model, tiny_loader())
            hooked = tiny_trainer(SolverGuard(random_fields=random_fields), monitors[1], steps)
            hooked.fit(model, tiny_loader())
        nfe = [logged.get("train/nfe_forward") for logged in steps.train]
        seen.append((state_of(hooked), model.numbers, nfe, model.block.stats.nfe_forward))
    assert_same(seen[0][0], seen[1][0])
    assert seen[0][1:] == seen[1][1:]


def test_looking_leaves_the_buffers_of_a_solve_before_to_its_gradient():
    class Twice(OwnModel):
        def __init__(self):
            super().__init__()
            self.block = ODEBlock(Turns(), FixedGridSolver("rk4", 2))

        def training_step(self, batch, batch_idx):
            return self.block(self.block(batch)).square().mean()

    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("turn", torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))

        def forward(self, t, y):
            return (self.linear(y) * t) @ self.turn

    assert messages(SolverGuard(), seeded(Twice)) == []


def test_looking_at_an_attached_field_of_our_own_block_moves_nothing():
    model = nn.Sequential(ODEBlock(MLPField(2, (4,)), TorchdiffeqSolver()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = "0.vector_field"
        steering = steer(model, b=0.5, step=0, seed=0, vector_fields=[path])
        with steering as end_times, look_at_fields(model, "raise"):
            model(torch.ones(2, 2))
    assert 0.5 < end_times[f"steer/{path}/end_time"] < 1.5


@pytest.mark.parametrize(("rejected", "warns"), [(5, False), (6, True)])
def test_a_share_of_fewer_than_ten_steps_says_nothing(rejected, warns):
    model, watch = seeded(OwnModel), StepWatch(0.0, 0.5)
    watch.start_epoch(model)
    watch.start()
    model.block.stats.accepted, model.block.stats.rejected = 4, rejected
    with warnings.catch_warnings(record=True, action="always") as caught:
        watch.check()
    assert bool(caught) is warns
