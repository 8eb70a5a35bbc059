"""Penalties of a step: in every block, in somebody else's model, without a trace elsewhere."""

import copy

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

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
    Acceleration,
    JacobianNorm,
    KineticEnergy,
    LocalError,
    Stiffness,
    TrajectoryPolynomial,
)
from steer_lightning.penalties.attached import AttachedProbe
from steer_lightning.penalties.control import _ACTIVE, Penalizing
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from tests.helpers.models import ForeignModel, OwnModel, seeded, tiny_data
from tests.helpers.problems import CosineField, OscillatorField

POINTS = [KineticEnergy(1.0), JacobianNorm(1.0), Acceleration(1.0), TrajectoryPolynomial(1.0)]
STEPS = [LocalError(1.0), Stiffness(1.0)]


def latent():
    model = LatentODE(1, 2, 3, "rnn", 4, (4,), (4,))
    t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 1)
    batch = make_series([t, t[:2]], [x, x[:2]], [x, x[:2]])
    return model, lambda: model(batch, 2, torch.Generator().manual_seed(0)).mean


def block(solver, **settings):
    model = ODEBlock(MLPField(2, (4,)), solver, **settings)
    t_eval = torch.tensor([0.0, 0.3, 1.0])
    return model, lambda: model(torch.linspace(-1.0, 1.0, 6).reshape(3, 2), t_eval)


def flow(cls, *args, shape=(2,), **settings):
    model = cls(*args, **settings)
    x = torch.linspace(-1.0, 1.0, 3 * torch.Size(shape).numel()).reshape(3, *shape)
    noise = torch.Generator()
    return model, lambda: model.log_prob(x, generator=noise.manual_seed(0))


CASES = {
    "adaptive": lambda: block(AdaptiveSolver()),
    "checkpointed": lambda: block(AdaptiveSolver("tsit5", checkpoint=True)),
    "implicit": lambda: block(RosenbrockSolver()),
    "fixed grid": lambda: block(FixedGridSolver("rk4", n_steps=3)),
    "torchdiffeq": lambda: block(TorchdiffeqSolver("dopri5", 1e-4, 1e-4)),
    "adjoint": lambda: block(TorchdiffeqSolver("dopri5", 1e-4, 1e-4, gradient="adjoint")),
    "grid": lambda: block(AdaptiveSolver(), horizon=GridHorizon()),
    "cnf": lambda: flow(CNF, ConcatSquashField(2, (4,)), (2,)),
    "hutchinson, learned end": lambda: flow(
        CNF, ConcatSquashField(2, (4,)), (2,), trace_estimator="hutchinson", learn_t1=True
    ),
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


def test_probes_lie_inside_the_drawn_span():
    model, _ = block(AdaptiveSolver())
    for step in range(20):
        penalizing = Penalizing(model, [TrajectoryPolynomial(1.0)])
        penalizing.start(seed=0, step=step, weights={"trajectory_polynomial": 1.0})
        with steer(model, 0.9, step=step, seed=0) as ends:
            model(torch.ones(3, 2))
        (probed,) = model.probing.seen
        end = ends["steer/horizon/end_time"]
        assert probed.length == pytest.approx(end)
        assert 0.0 < float(probed.t[0]) < float(probed.t[1]) < end
        penalizing.release()


def test_each_sample_has_its_own_probe_times_under_its_own_end():
    model = ODEBlock(CosineField(), AdaptiveSolver("dopri5", 1e-9, 1e-9))
    y0 = torch.ones(3, 1, dtype=torch.float64)
    penalizing = Penalizing(model, [KineticEnergy(1.0)])
    penalizing.start(seed=0, step=0, weights={"kinetic_energy": 1.0})
    with steer(model, 0.5, step=0, seed=0, scope="sample"):
        model(y0)
    (probed,) = model.probing.seen
    assert probed.t[0].shape == probed.length.shape == (3,)
    expected = CosineField().exact(y0, 0.0, probed.t[0])
    torch.testing.assert_close(probed.y[0], expected, rtol=1e-7, atol=1e-7)
    penalizing.release()


@pytest.mark.parametrize("call", [odeint, odeint_adjoint])
@pytest.mark.parametrize("steered", [False, True])
def test_an_evaluation_of_a_foreign_solve_is_seen_as_it_was(call, steered):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.func = CosineField()

        def forward(self, y0):
            times = torch.tensor([0.5, 2.0], dtype=torch.float64)
            return call(self.func, y0, times, rtol=1e-9, atol=1e-9)[-1]

    model, y0 = Foreign(), torch.linspace(0.5, 2.0, 3, dtype=torch.float64)[:, None]
    for step in range(5):
        penalties = [KineticEnergy(1.0), Acceleration(2.0), JacobianNorm(0.5)]
        penalties.append(LocalError(1.0, "one_step"))
        penalizing = Penalizing(model, penalties, ["func"])
        weights = {p.name: p.weight.at(step=0, epoch=0) for p in penalties}
        penalizing.start(seed=0, step=step, weights=weights)
        with steer(model, 0.5 if steered else 0.0, step=step, seed=0, vector_fields=["func"]):
            model(y0)
        (probe,) = penalizing._attached.values()
        (probed,) = probe.collect()
        t, y, a = probed.t[0], probed.y[0].detach(), model.func.a.detach()
        assert probed.length == pytest.approx(1.5)
        torch.testing.assert_close(y, model.func.exact(y0, 0.5, t), rtol=0.3, atol=0.0)
        assert probed.y[0].requires_grad is (call is odeint) or float(t) == 0.5
        f = a * torch.cos(t) * y
        kinetic = 1.5 * 0.5 * f.square().mean()
        torch.testing.assert_close(penalties[0].value(probed).detach(), kinetic)
        second = a * torch.cos(t) * f - a * torch.sin(t) * y
        torch.testing.assert_close(
            penalties[1].value(probed).detach(), 1.5 * second.square().mean()
        )
        penalizing.release()
        model(y0)
    hooks = model.func._forward_hooks.values()  # those of `steer` stay
    assert not any(type(hook).__module__.endswith("penalties.attached") for hook in hooks)


def test_every_evaluation_of_a_step_is_kept_as_often_as_any_other():
    class Field(nn.Module):
        def forward(self, t, y):
            return y

    field, counts = Field(), [0] * 4
    probe = AttachedProbe(field, "field")
    for step in range(400):
        probe.start(step)
        for t in range(4):
            field(torch.tensor(float(t)), torch.ones(1, 1))
        (probed,) = probe.collect()
        counts[int(probed.t[0])] += 1
    assert all(abs(count - 100) < 30 for count in counts)  # 3.5 standard deviations


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
    x = torch.rand(2, 1, 8, 8)
    with penalize(flow, POINTS, step=0, seed=0):
        plain = flow.log_prob(x, generator=torch.Generator().manual_seed(0))
        assert float(penalty(flow)) > 0.0
    assert plain.isfinite().all()
