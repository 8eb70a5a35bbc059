"""Moving end times in plain PyTorch."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning import steer
from steer_lightning.horizon import SpanHorizon
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver
from steer_lightning.steering.contexts import end_time_offset_at, nominal
from steer_lightning.utils.schedule import Schedule
from tests.helpers.models import ClockField, ForeignModel, OwnModel, seeded, tiny_data

CASES = {
    "own": (OwnModel, {}, "steer/block.horizon/end_time"),
    "foreign": (ForeignModel, {"vector_fields": ["func"]}, "steer/func/end_time"),
}
both = pytest.mark.parametrize(("model_class", "where", "name"), CASES.values(), ids=list(CASES))


def end_of(model):
    """The end time that a model's clock shows."""
    return float(model(tiny_data())[0, 1].detach())


def drawn(model, b=0.5, step=0, seed=1, **settings):
    """The end time of a block in one step."""
    with steer(model, b, step=step, seed=seed, **settings) as ends:
        return ends["steer/block.horizon/end_time"]


@both
def test_inside_the_block_the_end_moves_and_after_it_no_bit_has_changed(model_class, where, name):
    model, x = seeded(model_class), tiny_data()
    before = model(x)
    with steer(model, b=0.5, step=3, seed=1, **where) as ends:
        assert list(ends) == [name]
        end = end_of(model)
        assert 0.5 < ends[name] < 1.5
        assert end == pytest.approx(ends[name], abs=1e-5)
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)
    assert pickle.loads(pickle.dumps(ends)) == {name: pytest.approx(end, abs=1e-5)}


@both
def test_forward_and_backward_inside_give_the_gradient_of_the_moved_solve(
    model_class, where, name
):
    grads = []
    for gradient in ("autograd", "adjoint"):
        model = seeded(model_class, gradient == "adjoint" if model_class is ForeignModel
                       else gradient)  # fmt: skip
        with steer(model, b=0.5, step=0, seed=1, **where) as ends:
            model.loss(tiny_data()).backward()
        grads.append(next(model.parameters()).grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
    reference = seeded(OwnModel, t_span=(0.0, ends[name]))
    reference.loss(tiny_data()).backward()
    torch.testing.assert_close(grads[0], next(reference.parameters()).grad, rtol=1e-3, atol=1e-4)


@both
def test_the_draw_depends_on_seed_and_step_alone(model_class, where, name):
    def ends(seed, step):
        model = seeded(model_class)
        with steer(model, b=0.5, step=step, seed=seed, **where) as found:
            model(tiny_data())
        return found[name]

    before = torch.get_rng_state()
    first = ends(0, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert ends(0, 0) == first
    assert len({first, ends(0, 1), ends(1, 0)}) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_torchs_own_decides():
    model = seeded(OwnModel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.rand(3)
        from_torch = drawn(model, seed=None)
    assert from_torch == drawn(model, seed=5)


def test_horizons_of_one_model_are_drawn_apart():
    model = nn.ModuleDict({"a": ODEBlock(ClockField()), "b": ODEBlock(ClockField())})
    with steer(model, b=0.5, step=0, seed=1) as ends:
        assert set(ends) == {"steer/a.horizon/end_time", "steer/b.horizon/end_time"}
        assert len(set(ends.values())) == 2


@pytest.mark.parametrize(("scope", "same"), [("batch", True), ("rank", False)])
def test_the_scope_decides_whether_ranks_agree(scope, same):
    first, second = (drawn(seeded(OwnModel), scope=scope, rank=rank) for rank in range(2))
    assert (first == second) is same


def test_an_end_time_for_each_sample():
    model, x = seeded(OwnModel), tiny_data()
    clocks = []
    for rank in range(2):
        with steer(model, b=0.5, step=0, seed=1, scope="sample", rank=rank):
            clocks.append(model(x)[:, 1])
    assert len(torch.cat(clocks).unique()) == 2 * len(x)
    assert bool(((torch.cat(clocks) - 1.0).abs() <= 0.5 + 1e-5).all())


def test_samples_can_be_mapped_over_by_torch_func():
    block, x = seeded(ODEBlock, MLPField(2, (4,)), FixedGridSolver()), tiny_data(3)
    with steer(block, b=0.5, step=0, seed=1):
        mapped = torch.func.vmap(lambda sample: block(sample[None])[0])(x)
        torch.testing.assert_close(mapped, block(x))


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_b_follows_a_schedule(unit):
    model, b = seeded(OwnModel), Schedule(0.5, 0.0, 4, unit=unit)
    for at in range(6):
        step = at if unit == "step" else 3
        decayed, full = drawn(model, b, step, epoch=at) - 1.0, drawn(model, step=step) - 1.0
        assert decayed == pytest.approx(max(0.0, 1.0 - at / 4) * full, abs=1e-12)


def test_the_normal_distribution_is_another_draw():
    uniform, normal = (drawn(seeded(OwnModel), distribution=d) for d in ("uniform", "normal"))
    assert uniform != normal
    assert 0.5 <= normal <= 1.5


@both
def test_an_exception_inside_puts_the_nominal_end_back(model_class, where, name):
    model, x = seeded(model_class), tiny_data()
    before = model(x)

    def step():
        with steer(model, b=0.5, step=0, **where):
            assert not torch.equal(model(x), before)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        step()
    assert torch.equal(model(x), before)
    with steer(model, b=0.5, step=1, **where):
        model(x)


@both
def test_a_block_inside_another_is_refused_and_the_outer_one_goes_on(model_class, where, name):
    model = seeded(model_class)
    with steer(model, b=0.5, step=0, seed=1, **where) as ends:
        with (
            pytest.raises(
                ValueError, match=r"one owner for the horizon .* steer\(step=0\) #\d+ h"
            ),
            steer(model, b=0.5, step=0, **where),
        ):
            pass
        end = end_of(model)
        assert end == pytest.approx(ends[name], abs=1e-5)
    assert end_of(model) == pytest.approx(1.0, abs=1e-6)


def test_blocks_on_two_fields_may_be_nested():
    model = nn.ModuleDict({"a": seeded(ForeignModel), "b": seeded(ForeignModel)})
    with (
        steer(model, b=0.5, step=0, seed=1, vector_fields=["a.func"]) as outer,
        steer(model, b=0.2, step=0, seed=1, vector_fields=["b.func"]) as inner,
    ):
        found = end_of(model["a"]), end_of(model["b"])
        expected = outer["steer/a.func/end_time"], inner["steer/b.func/end_time"]
        assert found == pytest.approx(expected, abs=1e-5)


def test_hooks_do_not_pile_up_over_many_steps():
    model = seeded(ForeignModel)
    for step in range(20):
        with steer(model, b=0.5, step=step, vector_fields=["func"]):
            model.loss(tiny_data()).backward()
    assert len(model.func._forward_pre_hooks) == len(model.func._forward_hooks) == 1
    with steer(model, b=0.5, step=0, seed=1, vector_fields=["func"], t0=0.0, t1=1.0) as ends:
        assert len(model.func._forward_pre_hooks) == 1
        assert end_of(model) == pytest.approx(ends["steer/func/end_time"], abs=1e-5)


@both
@pytest.mark.parametrize("adjoint", [False, True])
def test_a_backward_pass_after_the_block_has_its_end_time(model_class, where, name, adjoint):
    grads = []
    for held in (False, True):
        torch.manual_seed(0)
        model = model_class(adjoint) if model_class is ForeignModel else model_class()
        with steer(model, b=0.5, step=0, seed=1, **where):
            loss = model.loss(tiny_data())
            if not held:
                loss.backward()
        if held:
            loss.backward()
        grads.append(next(model.parameters()).grad)
    assert torch.equal(*grads)


def look(model):
    """Evaluate a model in eval mode, as another callback may within a training step."""
    model.eval()
    with torch.no_grad():
        model(tiny_data())
    model.train()


@pytest.mark.parametrize("looks", ["", "before", "after", "before and after"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_block_in_a_checkpoint_keeps_its_end_time(use_reentrant, looks):
    model, y0 = seeded(OwnModel), tiny_data().requires_grad_()
    with steer(model, b=0.5, step=0, seed=1):
        model(y0).sum().backward()
    expected = y0.grad.clone()
    y0.grad = None
    with steer(model, b=0.5, step=0, seed=1):
        if "before" in looks:
            look(model)
        y = checkpoint(model, y0, use_reentrant=use_reentrant)
        if "after" in looks:
            look(model)
        loss = y.sum()
    with steer(model, b=0.5, step=7, seed=1):  # the next step has begun
        loss.backward()
    torch.testing.assert_close(y0.grad, expected)


@pytest.mark.parametrize("looks", ["before", "after", "before and after"])
def test_an_adjoint_called_on_the_field_keeps_its_end_time(looks):
    model, y0, grads = seeded(ForeignModel), tiny_data(), []
    for call in (odeint, odeint_adjoint):
        with steer(model, b=0.5, step=0, seed=1, vector_fields=["func"]):
            if call is odeint_adjoint and "before" in looks:
                look(model)
            y = call(model.func, y0, torch.tensor([0.0, 1.0]), rtol=1e-6, atol=1e-6)[-1]
            if call is odeint_adjoint and "after" in looks:
                look(model)
            loss = y.square().sum()
        grads.append(torch.autograd.grad(loss, [*model.func.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@both
def test_in_eval_mode_nothing_moves_and_a_step_in_it_is_refused(model_class, where, name):
    model, x = seeded(model_class), tiny_data()
    before = model(x)
    with steer(model, b=0.5, step=0, seed=1, **where):
        moved = model(x)
        model.eval()
        assert torch.equal(model(x), before)
        model.train()
        assert torch.equal(model(x), moved)
    model.eval()
    with (
        pytest.raises(ValueError, match=r"in training mode, but .* no effect. Call .train\(\)"),
        steer(model, b=0.5, step=0, **where),
    ):
        pass


@pytest.mark.parametrize("offset", [-0.5, 0.0, 0.25])
def test_a_sweep_over_the_end_time_moves_every_span_and_puts_it_back(offset):
    model, x = seeded(OwnModel), tiny_data()
    before = model(x)
    with end_time_offset_at(model, offset):
        assert end_of(model) == pytest.approx(1.0 + offset, abs=1e-5)
        assert torch.equal(model(x), before) is (offset == 0.0)
    assert torch.equal(model(x), before)
    with steer(model, b=0.5, step=0, seed=1) as ends:  # within a training step
        with end_time_offset_at(model, offset):
            assert end_of(model) == pytest.approx(1.0 + offset, abs=1e-5)
        assert end_of(model) == pytest.approx(ends["steer/block.horizon/end_time"], abs=1e-5)


def test_a_sweep_that_reaches_t0_is_refused_and_leaves_the_model_as_it_was():
    model = nn.ModuleList([SpanHorizon(0.0, 5.0), SpanHorizon(0.0, 1.0, learn_t1=True)])
    with torch.no_grad():
        model[1].learned_t1.fill_(3.0)
    with end_time_offset_at(model, -2.0):  # from where it is now
        assert [h.in_force()["end_time"] for h in model] == [3.0, 1.0]
    with (
        pytest.raises(ValueError, match="keeps the end time apart from t0"),
        end_time_offset_at(model, -3.0),
    ):
        pass
    assert [h.in_force()["end_time"] for h in model] == [5.0, 3.0]


def test_a_sweep_needs_a_span():
    with (
        pytest.raises(ValueError, match="model with a SpanHorizon, but ForeignModel has none"),
        end_time_offset_at(seeded(ForeignModel), 0.1),
    ):
        pass


def test_an_end_time_of_evaluation_goes_with_every_context():
    model, x = seeded(OwnModel), tiny_data()
    model.block.horizon.eval_end_time = 0.75
    with steer(model, b=0.5, step=0, seed=1) as ends, nominal(model):
        assert end_of(model) == pytest.approx(1.0, abs=1e-5)
    model.eval()
    assert end_of(model) == pytest.approx(0.75, abs=1e-5)
    evaluated = model(x)
    with nominal(model):
        assert torch.equal(model(x), evaluated)
    for offset in (-0.75, 0.0, 0.25):  # a sweep is over T - t1, whatever is evaluated without it
        with end_time_offset_at(model, offset):
            assert end_of(model) == pytest.approx(1.0 + offset, abs=1e-5)
    model.train()
    with steer(model, b=0.5, step=0, seed=1):
        assert end_of(model) == pytest.approx(ends["steer/block.horizon/end_time"], abs=1e-5)
