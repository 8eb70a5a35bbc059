"""Penalties of a step: in every block, without a trace elsewhere."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from steer_lightning import penalize, penalty, steer
from steer_lightning.horizon import GridHorizon
from steer_lightning.nn import (
    CNF,
    ConcatSquashField,
    ConvFlowField,
    LatentODE,
    MLPField,
    MultiScaleCNF,
    ODEBlock,
)
from steer_lightning.nn.series import make_series
from steer_lightning.penalties import (
    KineticEnergy,
    LocalError,
    Penalty,
    Stiffness,
    TrajectoryPolynomial,
)
from steer_lightning.penalties.control import _ACTIVE
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from tests.helpers.models import ForeignModel, OwnModel, seeded, tiny_data
from tests.helpers.problems import OscillatorField
from tests.penalties.looking import POINTS, looking


class Decays(torch.nn.Module):
    """``y' = -a y`` of a state of any shape."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, t, y):
        return -self.a * y * (1.0 + 0.1 * t)


STEPS = [LocalError(1.0), Stiffness(1.0)]


class AtThreeTimes(KineticEnergy):
    n_times = 3


def latent():
    model = LatentODE(1, 2, 3, "rnn", 4, (4,), (4,))
    t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 1)
    batch = make_series([t, t[:2]], [x, x[:2]], [x, x[:2]])
    return model, lambda: model(batch, 2, torch.Generator().manual_seed(0)).mean


def block(solver, **settings):
    model = ODEBlock(MLPField(2, (4,)), solver, **settings)
    t_eval = torch.tensor([0.0, 0.3, 1.0])
    return model, lambda: model(torch.linspace(-1.0, 1.0, 6).reshape(3, 2), t_eval)


def flow(**settings):
    model, noise = CNF(ConcatSquashField(2, (4,)), (2,), **settings), torch.Generator()
    x = torch.linspace(-1.0, 1.0, 6).reshape(3, 2)
    return model, lambda: model.log_prob(x, generator=noise.manual_seed(0))


CASES = {
    "adaptive": lambda: block(AdaptiveSolver()),
    "checkpointed": lambda: block(AdaptiveSolver("tsit5", checkpoint=True)),
    "implicit": lambda: block(RosenbrockSolver()),
    "fixed grid": lambda: block(FixedGridSolver("rk4", n_steps=3)),
    "torchdiffeq": lambda: block(TorchdiffeqSolver("dopri5", 1e-4, 1e-4)),
    "adjoint": lambda: block(TorchdiffeqSolver("dopri5", 1e-4, 1e-4, gradient="adjoint")),
    "grid": lambda: block(AdaptiveSolver(), horizon=GridHorizon()),
    "cnf": flow,
    "hutchinson, learned end": lambda: flow(trace_estimator="hutchinson", learn_t1=True),
    "latent": latent,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scope", [None, "batch", "sample"])
def test_no_bit_of_what_a_block_returns_changes_and_all_parameters_learn(case, scope):
    results, values = [], []
    n_more = {"adaptive": 2, "checkpointed": 2, "cnf": 2, "latent": 2, "implicit": 1}.get(case, 0)
    penalties = POINTS + STEPS[:n_more]
    for used in ([], penalties, penalties):
        torch.manual_seed(0)
        model, solve = CASES[case]()
        with steer(
            model, 0.0 if scope is None else "auto", step=0, seed=1, scope=scope or "batch"
        ):
            if used:
                with penalize(model, used, step=0, seed=2):
                    results.append(solve().detach())
                    total = penalty(model)
                    values.append(total.detach())
                    found = dict(_ACTIVE[model].values)
                    assert float(penalty(model)) == 0.0  # all was taken
                total.backward()
            else:
                results.append(solve().detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(values[0], values[1])
    assert set(found) == {p.name for p in penalties}
    assert all(value > 0.0 for value in found.values())
    assert values[0].item() == pytest.approx(sum(found.values()), rel=1e-5)
    for name, p in model.named_parameters():
        if "vector_field" in name and not name.endswith("bias"):
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all())
            assert bool((p.grad != 0).any()), name


class Scaled(torch.nn.Module):
    """A field ``w c`` under a condition ``c``."""

    def __init__(self):
        super().__init__()
        self.w, self.condition = torch.nn.Parameter(torch.tensor(1.0)), None

    def forward(self, t, y):
        return self.w * self.condition.expand_as(y)


class BySomebodyElse(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vector_field = Scaled()

    def forward(self, y0):
        return odeint(self.vector_field, y0, torch.tensor([0.0, 1.0]), method="rk4")[-1]


@pytest.mark.parametrize("foreign", [False, True])
def test_a_penalty_has_the_condition_of_its_solve(foreign):
    model = BySomebodyElse() if foreign else ODEBlock(Scaled())
    paths = ["vector_field"] if foreign else None
    with penalize(model, [KineticEnergy(1.0)], step=0, seed=0, vector_fields=paths):
        expected = 0.0
        for condition, n in ((1.0, 4), (3.0, 2))[foreign:]:
            model.vector_field.condition = torch.tensor([[condition]])
            model(torch.ones(n, 2))
            expected += 0.5 * condition**2
        model.vector_field.condition = None
        assert float(penalty(model)) == pytest.approx(expected)
    assert model.vector_field.condition is None


@pytest.mark.parametrize("end", [2.0, -0.5])  # a learned one may pass t0
@pytest.mark.parametrize("which", [*STEPS, LocalError(1.0, "one_step")], ids=repr)
def test_penalties_of_steps_are_in_actual_time(which, end):
    given = ODEBlock(Decays(), t_span=(0.0, end)).double()
    learned = ODEBlock(Decays(), learn_t1=True).double()  # its solver's times end at 1
    torch.nn.init.constant_(learned.horizon.learned_t1, end)
    values = []
    for model in (given, learned):
        with penalize(model, [which], step=0, seed=0):
            model(torch.ones(2, 1, dtype=torch.float64))
            values.append(float(penalty(model)))
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("compiled", ["field", "solver", "model"])
def test_compiled_parts_show_the_same(compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    x, found = torch.linspace(-1.0, 1.0, 6).double().reshape(3, 2), []
    for on in (False, True):
        torch.manual_seed(0)
        solver = AdaptiveSolver(compile=on and compiled == "solver")
        compiling = {"compile": on} if compiled == "field" else {}
        model = CNF(ConcatSquashField(2, (4,)), (2,), solver, **compiling).double()
        whole = torch.compile(model) if on and compiled == "model" else model
        with penalize(whole, [*POINTS, *STEPS], step=0, seed=0):
            model.log_prob(x)
            total = penalty(whole)
        found.append([total, *torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


def test_evaluation_and_other_solves_are_not_looked_at():
    model, x = seeded(OwnModel), tiny_data()
    with penalize(model, [KineticEnergy(1.0)], step=0, seed=0):
        with torch.no_grad():
            model(x)
        model.eval()
        model(x)
        model.train()
        assert model.block.probing.seen == []
        model(x)
        assert len(model.block.probing.seen) == 1
        assert copy.deepcopy(model).block.probing.seen == []
        penalty(model)
    assert model.block.probing is None


def test_penalties_that_weigh_nothing_look_at_nothing():
    model, x = seeded(OwnModel), tiny_data()
    with penalize(model, [KineticEnergy(0.0)], step=0):
        model(x)
        assert model.block.probing is None
        assert float(penalty(model)) == 0.0


@pytest.mark.parametrize(
    ("model", "penalties", "fields", "message"),
    [
        (OwnModel(), STEPS[:1], None, "AdaptiveSolver or Ros.* 'block' for local_error.*Torchdi"),
        (block(AdaptiveSolver("bosh3"))[0], STEPS[1:], None, "dopri5 or tsit5 .* for stiffness"),
        (block(AdaptiveSolver(stiff="switch"))[0], STEPS[1:], None, "dopri5 or tsit5 to the end"),
        (OwnModel(), [], None, r"Expected penalties, each once, but got \[\]"),
        (OwnModel(), POINTS[:1] * 2, None, "each once"),
        (ForeignModel(), POINTS, None, "ForeignModel has none. Name the modules"),
        (ForeignModel(), STEPS, ["func"], "local_error needs the solver's steps"),
        (ForeignModel(), POINTS[-1:], ["func"], "trajectory_polynomial needs the solver's"),
        (ForeignModel(), [AtThreeTimes(1.0)], ["func"], "at_three_times needs .* several states"),
        (ForeignModel(), POINTS[:1], ["fun"], "Did you mean 'func'"),
    ],
)
def test_what_cannot_be_seen_is_refused(model, penalties, fields, message):
    with (
        pytest.raises(ValueError, match=message),
        penalize(model, penalties, step=0, vector_fields=fields),
    ):
        pass
    assert model not in _ACTIVE


@pytest.mark.parametrize("given", [KineticEnergy(1.0), [0.1]])
def test_something_else_than_a_list_of_penalties_is_refused(given):
    with pytest.raises(TypeError, match="list of penalties"), penalize(OwnModel(), given, step=0):
        pass


def test_a_penalty_sees_the_times_that_it_asked_for_whatever_others_ask():
    class Sizes(Penalty):
        def value(self, probed):
            return sum(y.square().mean() for y in probed.y) * len(probed.t) * len(probed.shares)

    found = []
    for others in ([], [TrajectoryPolynomial(1.0), AtThreeTimes(1.0)]):
        with looking(model := seeded(OwnModel), Sizes(1.0), *others) as penalizing:
            model(tiny_data())
            penalizing.take()
        found.append(penalizing.values["sizes"])
    assert found[0] == found[1] > 0.0


def test_a_step_without_a_solve_two_owners_and_none_are_refused():
    model = seeded(OwnModel)
    with (
        pytest.raises(ValueError, match=r"No solve of \['block'\] was seen and taken inside"),
        penalize(model, POINTS[:1], step=0),
    ):
        model(tiny_data())
    with (
        penalize(model, [KineticEnergy(0.0)], step=0),
        pytest.raises(ValueError, match="one owner for the penalties of OwnModel"),
        penalize(model, POINTS[:1], step=0),
    ):
        pass
    with pytest.raises(ValueError, match="model under penalties, but OwnModel has none"):
        penalty(model)


def test_states_and_solvers_that_cannot_be_read_are_refused():
    pair = ODEBlock(OscillatorField())
    y0 = torch.ones(2, 1, dtype=torch.float64)
    with (
        pytest.raises(TypeError, match="one tensor under a penalty, but got a tuple"),
        penalize(pair, POINTS[:1], step=0),
    ):
        pair((y0, y0))
    model, solve = block(TorchdiffeqSolver("rk4"))
    with (
        pytest.raises(ValueError, match="torchdiffeq's 'rk4' would take other steps"),
        penalize(model, POINTS[:1], step=0),
    ):
        solve()


def test_an_image_flow_of_several_scales():
    torch.manual_seed(0)
    flow = MultiScaleCNF((1, 8, 8), lambda channels: ConvFlowField(channels, (2,)))
    with penalize(flow, POINTS, step=0, seed=0):
        plain = flow.log_prob(torch.rand(2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        assert float(penalty(flow)) > 0.0
    assert plain.isfinite().all()


@pytest.mark.parametrize("which", POINTS, ids=lambda p: p.name)
@pytest.mark.parametrize("shape", [(3,), ()])
def test_a_state_without_features_is_one_number_a_sample(which, shape):
    values = []
    for y0 in (torch.full(shape, 0.7), torch.full((*(shape or (1,)), 1), 0.7)):
        block = ODEBlock(Decays())
        with penalize(block, [which], step=0, seed=0):
            block(y0)
            values.append(float(penalty(block)))
    if which.name != "jacobian_norm":  # whose noise has the shape of the state
        assert values[0] == pytest.approx(values[1])
    assert values[0] > 0.0


@pytest.mark.parametrize("t0", [1e6, 1.7e9])
def test_far_from_zero_a_penalty_of_a_float32_state_is_what_it_is_at_zero(t0):
    field, y0 = seeded(MLPField, 2, (4,), time_dependent=False), torch.ones(3, 2)
    found = []
    for start in (0.0, t0):
        block = ODEBlock(field, t_span=(start, start + 10.0))
        one_step = LocalError(1.0, "one_step", rtol=1e-7, atol=1e-7)
        with looking(block, TrajectoryPolynomial(1.0), one_step) as penalizing:
            block(y0)
            penalizing.take()
        model = nn.ModuleDict({"func": field})
        with looking(model, KineticEnergy(1.0), vector_fields=["func"]) as attached:
            odeint(field, y0, torch.tensor([start, start + 10.0], dtype=torch.float64))
            attached.take()
        found.append(penalizing.values | attached.values)
    assert all(value > 0.0 for value in found[0].values())
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_closures_of_a_step_have_the_same_penalty(checkpointed):
    block, values = seeded(ODEBlock, MLPField(2, (4,)), FixedGridSolver()), []
    with looking(block, KineticEnergy(1.0)) as penalizing:
        for _ in range(3):
            y0 = torch.ones(3, 2, requires_grad=True)
            y = checkpoint(block, y0, use_reentrant=False) if checkpointed else block(y0)
            value = penalizing.take()
            (y.sum() + value).backward()
            values.append(float(value.detach()))
    assert values == values[:1] * 3
