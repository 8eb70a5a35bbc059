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

CASES = {
    "own": (OwnModel, {}, "steer/block.horizon/end_time"),
    "foreign": (ForeignModel, {"vector_fields": ["func"]}, "steer/func/end_time"),
}
both = pytest.mark.parametrize(("model_class", "where", "name"), CASES.values(), ids=list(CASES))


def test_a_module_known_by_two_paths_may_be_named_by_either():
    model = nn.Module()
    model.func = ClockField()
    model.flow = nn.Sequential(model.func)
    for path in ("func", "flow.0"):
        with steer(model, b=0.5, step=0, vector_fields=[path]) as ends:
            assert list(ends) == [f"steer/{path}/end_time"]
            odeint(model.func, tiny_data(), torch.tensor([0.0, 1.0]))


def test_a_field_that_is_not_called_inside_the_block_is_refused():
    model = seeded(ForeignModel)
    with (
        pytest.raises(ValueError, match=r"'func' was not called inside `with steer\(...\)`"),
        steer(model, b=0.5, step=0, vector_fields=["func"]),
    ):
        pass


def test_a_field_inside_a_steered_block_is_refused():
    model = seeded(OwnModel)
    with (
        steer(model, b=0.5, step=0),
        pytest.raises(ValueError, match=r"T would move twice. Keep one of the two"),
        steer(model, b=0.5, step=0, vector_fields=["block.vector_field"]),
    ):
        pass


def test_a_field_inside_an_attached_field_is_refused_and_nobody_keeps_hooks():
    model = nn.Sequential(nn.Sequential(ClockField()))
    for paths in (["0", "0.0"], ["0.0", "0"]):
        with (
            pytest.raises(ValueError, match=r"T would move twice. Keep one of the two"),
            steer(model, b=0.5, step=0, vector_fields=paths),
        ):
            pass
    for outer, inner in (("0", "0.0"), ("0.0", "0")):
        first = Steering(model, SteerSettings(0.5, (outer,)), owner="first")
        with pytest.raises(ValueError, match=r"T would move twice. Keep one of the two"):
            Steering(model, SteerSettings(0.5, (inner,)), owner="second")
        first.release(detach=True)
    with (
        pytest.raises(ValueError, match=r"to be one of .* got '0.x'"),
        steer(model, b=0.5, step=0, vector_fields=["0.0", "0.x"]),
    ):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_wrapped_model_of_fabric_is_refused():
    model = Fabric(accelerator="cpu", devices=1).setup(seeded(OwnModel))
    with (
        pytest.raises(TypeError, match=r"_FabricModule, Fabric's wrapper .* Give the unwrapped"),
        steer(model, b=0.5, step=0),
    ):
        pass


def test_the_model_itself_may_be_the_field():
    field = ClockField()
    with steer(field, b=0.5, step=0, vector_fields=[""]) as ends:
        odeint(field, tiny_data(), torch.tensor([0.0, 1.0]))
        assert list(ends) == ["steer/model/end_time"]


def test_an_unknown_path_lists_the_near_ones():
    model = nn.ModuleDict({"flow": seeded(ForeignModel)})
    with (
        pytest.raises(
            ValueError, match=r"`vector_fields` .*'flow.fnc'\. Did you mean 'flow.func'.*nn.Module"
        ),
        steer(model, b=0.5, step=0, vector_fields=["flow.fnc"]),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"b": -0.5}, "Expected `b` to be 'auto' or finite and >= 0, but got -0.5"),
        ({"b": 1.0}, r"\|t1 - t0\| = 1, .* but got b = 1"),
        ({"b": 0.5, "vector_fields": []}, "name at least one module, but got an empty list"),
        ({"b": 0.5, "vector_fields": "func"}, r"the string 'func'\. Write \['func'\]"),
        ({"b": Schedule(-0.1, 0.5, 3)}, "schedule of `b` that is never negative"),
        ({"b": Schedule(0.0, 1.0, 3)}, r"\|t1 - t0\| = 1, .* but got b = 1"),
        ({"b": 0.5, "distribution": "norm"}, "`distribution` .*Did you mean 'normal'"),
        ({"b": 0.5, "scope": "samples"}, "`scope` .*Did you mean 'sample'"),
        ({"b": 0.5, "epsilon": 2.0}, "`epsilon`.* but got 2"),
        ({"b": "auto", "epsilon": Schedule(0.5, 1.5, 3)}, "`epsilon`.* but got 1.5"),
        ({"b": "auto", "epsilon": Schedule(0.0, 1.0, 3)}, "`epsilon`.* but got 0"),
        ({"t1": 1.0, "vector_fields": ["block"]}, "both `t0` and `t1` with .* t0 = None, t1 = 1"),
        ({"t0": 0.0, "t1": 1.0}, "vector_fields = None. They are the span of attached fields"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    model = seeded(OwnModel)
    with pytest.raises(ValueError, match=message), steer(model, step=0, **{"b": 0.5, **settings}):
        pass
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


def test_a_model_without_horizons_is_refused():
    with (
        pytest.raises(
            ValueError, match=r"model with horizons, but ForeignModel has none.*flow.func"
        ),
        steer(seeded(ForeignModel), b=0.5, step=0),
    ):
        pass


def test_check_solved_names_what_was_left_out():
    own = Steering(seeded(OwnModel), SteerSettings(0.5), owner="test")
    with pytest.raises(ValueError, match=r"horizon 'block.horizon' was not solved in the first"):
        own.check_solved("in the first batch")
    foreign = Steering(seeded(ForeignModel), SteerSettings(0.5, ("func",)), owner="test")
    with pytest.raises(ValueError, match=r"field 'func' was not called .* A closure, a direct"):
        foreign.check_solved("in the first batch")


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
