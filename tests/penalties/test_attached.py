"""Penalties in somebody else's model, and of the field of an ODE-RNN."""

import copy
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint
from torchdyn.core import NeuralODE

from steer_lightning import penalize, penalty, steer
from steer_lightning.nn import ODEBlock, ODERNNForecaster
from steer_lightning.nn.probes import Probed
from steer_lightning.nn.series import make_series
from steer_lightning.penalties import KineticEnergy, LocalError
from steer_lightning.penalties.attached import AttachedProbe
from tests.helpers.models import lively
from tests.helpers.problems import CosineField, initial_state, times
from tests.penalties.looking import POINTS, looking


def by_torchdiffeq(call):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.func = CosineField()

        def forward(self, y0):
            return call(self.func, y0, torch.tensor([0.5, 2.0], dtype=torch.float64))[-1]

    return Foreign(), "func"


def by_torchdyn(sensitivity):
    class TakesArgs(CosineField):
        def forward(self, t, y, args=None):
            return super().forward(t, y)

    node = NeuralODE(TakesArgs(), solver="dopri5", sensitivity=sensitivity)
    model = nn.ModuleDict({"node": node})
    t_span = torch.tensor([0.5, 2.0], dtype=torch.float64)
    model.forward = lambda y0: node(y0, t_span)[1][-1]
    (path,) = (p for p, m in model.named_modules() if isinstance(m, CosineField))
    return model, path


FOREIGN = {
    "torchdiffeq": lambda: by_torchdiffeq(odeint),
    "torchdiffeq, adjoint": lambda: by_torchdiffeq(odeint_adjoint),
    "torchdyn": lambda: by_torchdyn("autograd"),
    "torchdyn, adjoint": lambda: by_torchdyn("adjoint"),
}


@pytest.mark.parametrize(
    ("library", "b"), [*((name, 0.0) for name in FOREIGN), *((n, 0.5) for n in list(FOREIGN)[:2])]
)
def test_a_foreign_models_penalties_are_those_of_our_block_at_the_same_time_and_state(library, b):
    model, path = FOREIGN[library]()
    field, y0 = model.get_submodule(path), torch.linspace(0.5, 2.0, 3).double()[:, None]
    block = ODEBlock(field, t_span=(0.5, 2.0))
    penalties = [*POINTS[:3], LocalError(1.0, "one_step")]
    for step in range(5):
        paths = {"step": step, "vector_fields": [path]}
        with looking(model, *penalties, **paths) as penalizing:
            with steer(model, b, seed=0, **paths) if b else nullcontext({}) as end_times:
                model(y0)
            (probed,) = penalizing._attached[path].collect()
        t, y, length = probed.t[0], probed.y[0].detach(), probed.length
        ends = probed.ends  # torchdyn's own solvers tell none
        assert probed.y_ends == ()
        if library.startswith("torchdiffeq"):
            end = end_times.get(f"steer/{path}/end_time", 2.0)
            assert length == pytest.approx(end - 0.5)
            assert [float(x) for x in ends] == pytest.approx([0.5, end])
            torch.testing.assert_close(y, field.exact(y0, 0.5, t), rtol=0.3, atol=0.0)
            assert probed.y[0].requires_grad is (library == "torchdiffeq") or float(t) == 0.5
        for p in penalties:
            found, expected = (
                p.value(Probed(f, (t,), (y,), ends, (y, y), length, torch.Generator()))
                for f in (probed.vector_field, block.vector_field)
            )
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
            gradients = [torch.autograd.grad(x, field.a)[0] for x in (found, expected)]
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=0.0)
            assert float(gradients[0]) != 0.0
    hooks = field._forward_hooks.values()  # those of `steer` stay
    assert not any(type(hook).__module__.endswith("penalties.attached") for hook in hooks)


def test_an_ode_rnn_is_refused_but_for_one_evaluation_of_its_field():
    torch.manual_seed(0)
    model = lively(ODERNNForecaster(1, 3, 4, (4,), (4,), 0.2))
    t = torch.tensor([0.0, 0.4, 1.0])
    batch = make_series(
        [t, t[:2]], [t[:, None], t[:2, None]], [torch.ones(3, 1), torch.ones(2, 1)]
    )
    with (
        pytest.raises(ValueError, match=r"'rnn', the ODE-RNN of .*_fields=\['rnn.vector_field'\]"),
        penalize(model, POINTS[:1], step=0),
    ):
        pass
    plain = model(batch).mean
    for which, step in product(POINTS[:3], range(6)):
        with penalize(model, [which], step=step, seed=1, vector_fields=["rnn.vector_field"]):
            torch.testing.assert_close(model(batch).mean, plain)
            value = penalty(model)
        assert float(value) > 0.0
        weights = [model.rnn.vector_field.network[i].weight for i in (0, 2)]
        assert any(bool(g.any()) for g in torch.autograd.grad(value, weights))
    pair = [POINTS[0], LocalError(1.0, "one_step")]
    with penalize(model, pair, step=0, vector_fields=["rnn.vector_field"]):
        model(batch)
        with pytest.raises(ValueError, match=r"one time .*'one_step'.* or an ODE-RNN has them"):
            penalty(model)


def test_every_evaluation_of_a_step_is_kept_as_often_as_any_other():
    class Field(nn.Module):
        def forward(self, t, y):
            return y

    field, counts = Field(), [0] * 4
    probe = AttachedProbe(field)
    for step in range(400):
        probe.start(step)
        for t in range(4):
            field(torch.tensor(float(t)), torch.ones(1, 1))
        (probed,) = probe.collect()
        counts[int(probed.t[0])] += 1
    assert all(abs(count - 100) < 30 for count in counts)  # 3.5 standard deviations


@pytest.mark.parametrize(("path", "warns"), [("", False), ("0", True)])
def test_a_part_of_what_is_solved_is_warned_of(path, warns, recwarn):
    class Faster(nn.Sequential):
        def forward(self, t, y):
            return 10.0 * self[0](t, y)

    model = Faster(CosineField())
    for step in range(2):
        with penalize(model, [KineticEnergy(1.0)], step=step, seed=0, vector_fields=[path]):
            odeint(model, initial_state(), times(0.0, 1.0))
            penalty(model)
    said = [str(w.message) for w in recwarn]
    assert len(said) == warns
    assert all("looks at a CosineField, but odeint got a Faster around it" in w for w in said)


@pytest.mark.parametrize("n_solves", [1, 2, 8])
def test_the_values_of_several_solves_add_up(n_solves):
    class Constant(nn.Module):
        def forward(self, t, y):
            return torch.full_like(y, 2.0)

    field, ends = Constant(), torch.linspace(0.0, 4.0, n_solves + 1)
    values = []
    for step in range(5):
        with penalize(field, [KineticEnergy(1.0)], step=step, seed=0, vector_fields=[""]):
            y = torch.zeros(3, 1)
            for span in ends.unfold(0, 2, 1):
                y = odeint(field, y, span, method="rk4")[-1]
            values.append(float(penalty(field)))
    assert values == pytest.approx([8.0] * 5)  # half of the speed squared, times the span


def test_closures_of_a_step_see_the_same_evaluation():
    probe = AttachedProbe(field := CosineField())
    probe.start(3)
    found = []
    for _ in range(4):
        odeint(field, torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double())
        (probed,) = probe.collect()
        found.append(float(probed.t[0]))
    assert found == found[:1] * 4


def test_a_field_is_looked_at_as_it_is_called():
    model, path = by_torchdiffeq(odeint)
    field, y0 = model.get_submodule(path), torch.ones(3, 1, dtype=torch.float64)
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    values = []
    for call in (field, lambda t, y: field(t, y=y), lambda t, y: field(y=y, t=t)):
        with penalize(field, POINTS[:1], step=0, seed=0, vector_fields=[""]):
            odeint(call, y0, t)
            copy.deepcopy(field)  # between the solve and the look
            values.append(float(penalty(field)))
    assert values == [values[0]] * 3

    def swapped():
        with penalize(field, POINTS[:1], step=0, vector_fields=[""]):
            field(torch.linspace(0.0, 1.0, 3).double(), torch.tensor(0.5).double())
            penalty(field)

    with pytest.raises(ValueError, match=r"called as f\(t, y, ...\), or .* t of shape \(3,\)"):
        swapped()
