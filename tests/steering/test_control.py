"""What can be steered and what is refused."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torchdiffeq import odeint

from steer_lightning import steer
from steer_lightning.horizon import GridHorizon
from steer_lightning.nn import ODEBlock
from steer_lightning.steering.control import Steering, SteerSettings
from steer_lightning.utils.schedule import Schedule
from tests.helpers.models import ClockField, ForeignModel, OwnModel, seeded, tiny_data
from tests.helpers.problems import CosineField


def refused(message, model, error=ValueError, **settings):
    """Steering raises an error, within the block or at its end."""
    with (
        pytest.raises(error, match=message),
        steer(model, **{"b": 0.5, "step": 0, **settings}),
    ):
        pass


def test_a_field_may_be_known_by_two_paths_or_be_the_model_itself():
    model = nn.Module()
    model.func = ClockField()
    model.flow = nn.Sequential(model.func)
    for root, path in ((model, "func"), (model, "flow.0"), (model.func, "")):
        with steer(root, b=0.5, step=0, vector_fields=[path]) as ends:
            odeint(model.func, tiny_data(), torch.tensor([0.0, 1.0]))
            assert list(ends) == [f"steer/{path or 'model'}/end_time"]


def test_a_field_is_named_by_one_of_its_paths():
    model = nn.Sequential(field := ClockField(), field)
    refused(r"each module once, but '0' and '1' are the same", model, vector_fields=["0", "1"])


def test_a_half_width_that_will_outgrow_the_span_of_the_first_solve_is_refused_at_once():
    grows, message = Schedule(0.0, 1.2, 100), r"\|t1 - t0\| = 1, .*but got b = 1.2"
    model = nn.Sequential(ClockField())
    with (
        pytest.raises(ValueError, match=message),
        steer(model, b=grows, step=0, vector_fields=["0"]),
    ):
        odeint(model[0], tiny_data(), torch.tensor([0.0, 1.0]))


def test_a_field_that_is_not_called_inside_the_block_is_refused():
    message = r"'func' was not called inside `with steer\(...\)`"
    refused(message, seeded(ForeignModel), vector_fields=["func"])


TWICE = r"T would move twice. Keep one of the two"


def test_a_field_inside_a_steered_block_is_refused():
    model = seeded(OwnModel)
    with steer(model, b=0.5, step=0):
        refused(TWICE, model, vector_fields=["block.vector_field"])


def test_a_field_inside_an_attached_field_is_refused_and_nobody_keeps_hooks():
    model = nn.Sequential(nn.Sequential(ClockField()))
    for outer, inner in (("0", "0.0"), ("0.0", "0")):
        refused(TWICE, model, vector_fields=[outer, inner])
        first = Steering(model, SteerSettings(0.5, (outer,)), owner="first")
        refused(TWICE, model, vector_fields=[inner])
        first.release(detach=True)
    refused(r"to be one of .* got '0.x'", model, vector_fields=["0.0", "0.x"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_wrapped_model_of_fabric_is_refused():
    model = Fabric(accelerator="cpu", devices=1).setup(seeded(OwnModel))
    refused(r"_FabricModule, Fabric's wrapper .* Give the unwrapped", model, TypeError)


def test_what_is_not_in_the_model_is_refused():
    model = nn.ModuleDict({"flow": seeded(ForeignModel)})
    near = r"`vector_fields` .*'flow.fnc'\. Did you mean 'flow.func'.*nn.Module"
    refused(near, model, vector_fields=["flow.fnc"])
    refused(r"model with horizons, but ModuleDict has none.*flow.func", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"b": -0.5}, "Expected `b` to be 'auto' or finite and >= 0, but got -0.5"),
        ({"b": 1.0}, r"\|t1 - t0\| = 1, .* but got b = 1"),
        ({"vector_fields": []}, "`vector_fields` to name at least one module, but got an empty"),
        ({"horizons": []}, "`horizons` to name at least one module, but got an empty list"),
        ({"horizons": "encoder"}, "Expected `horizons` to be a list of dotted paths, but got the"),
        ({"horizons": ["a"], "vector_fields": ["f"]}, "one of `vector_fields` and `horizons`"),
        ({"b": 0.5, "vector_fields": "func"}, r"the string 'func'\. Write \['func'\]"),
        ({"b": Schedule(-0.1, 0.5, 3)}, "schedule of `b` that is never negative"),
        ({"b": Schedule(0.0, 1.0, 3)}, r"\|t1 - t0\| = 1, .* but got b = 1"),
        ({"b": "auto", "epsilon": Schedule(0.5, 1.5, 3)}, "`epsilon`.* but got 1.5"),
        ({"b": "auto", "epsilon": Schedule(1.0, 0.0, 3)}, "`epsilon`.* but got 0"),
        ({"t1": 1.0, "vector_fields": ["block"]}, "both `t0` and `t1` with .* t0 = None, t1 = 1"),
        ({"t0": 0.0, "t1": 1.0}, "vector_fields = None. They are the span of attached fields"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    model = seeded(OwnModel)
    refused(message, model, **settings)
    with steer(model, b=0.5, step=0):  # the refusal left no owner behind
        pass


def test_what_auto_leaves_free_may_grow_to_the_whole_interval():
    epsilon = Schedule(0.1, 1.0, 2)
    gaps = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for step, share in ((0, 0.9), (1, 0.45), (2, 0.0)):
        draw = SteerSettings("auto", epsilon=epsilon).draw_at(step, 0)
        assert draw.half_widths(gaps, clip=True).tolist() == pytest.approx([share, 2.0 * share])
    block, y0 = ODEBlock(ClockField(), horizon=GridHorizon()), torch.zeros(3, 2)
    t_eval = torch.tensor([0.0, 0.5, 1.0])
    nominal = block(y0, t_eval)
    for step in (1, 2):
        with steer(block, "auto", step=step, epsilon=epsilon, seed=0):
            assert torch.equal(block(y0, t_eval), nominal) is (step == 2)


def test_the_table_shows_each_horizon_with_span_b_and_scope():
    model = nn.ModuleDict({"a": ODEBlock(ClockField(), t_span=(0.5, 2.0)), "g": GridHorizon()})
    lines = Steering(model, SteerSettings(0.25, scope="rank"), owner="test").table().splitlines()
    assert lines[0] == "STEER moves these end times in training:"
    assert lines[1].split() == ["horizon", "span", "b", "distribution", "scope"]
    assert set(lines[2]) == {"-"}
    assert lines[3].split("  ")[0] == "a.horizon"
    assert "[0.5, 2]" in lines[3]
    assert lines[3].split()[-3:] == ["0.25", "uniform", "rank"]
    assert lines[4].startswith("g          each interval of t_eval")
    table = Steering(nn.ModuleList([GridHorizon()]), SteerSettings("auto"), owner="test").table()
    assert "(1 - 0.001) gap" in table


def test_a_span_that_is_given_wins_over_that_of_a_run_before():
    model = nn.ModuleDict({"func": CosineField()})
    steering = Steering(model, SteerSettings(0.5, ["func"], t0=0.0, t1=2.0), owner="one")
    steering.take_spans({"func": (0.0, 1.0)})
    assert steering.spans == {"func": (0.0, 2.0)}


def test_another_span_does_not_take_a_field_from_its_owner():
    model = nn.ModuleDict({"func": CosineField()})
    first = Steering(model, SteerSettings(0.5, ["func"]), owner="one")
    with pytest.raises(ValueError, match=r"one owner .* two asks and one has it"):
        Steering(model, SteerSettings(0.5, ["func"], t0=0.0, t1=1.0), owner="two")
    assert first.horizons["func"].attached
