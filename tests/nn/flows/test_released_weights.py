import argparse
import os

import pytest
import torch
from torch import nn

from steer_lightning.nn import ConvFlowField, MultiScaleCNF
from steer_lightning.nn.flows.released_weights import load_released_weights, read_released_weights
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.models import image_flow
from tests.helpers.released_model import ReleasedModel, released_weights

SHAPE, HIDDEN = (1, 8, 8), (3,)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_model(**settings):
    return ReleasedModel(SHAPE, HIDDEN, **settings).double()


def make_flow(**settings):
    return image_flow(
        SHAPE,
        **{"solver": TorchdiffeqSolver(rtol=1e-9, atol=1e-9), "trace_estimator": "exact"}
        | settings,
    ).double()


@pytest.mark.parametrize(
    ("parallel", "settings"),
    [
        (False, {}),
        (True, {"regularized": True, "alpha": 0.05, "end_time": 0.5}),
    ],
)
def test_density_is_that_of_the_model_the_weights_are_of(parallel, settings):
    model = make_model(**settings)
    flow = make_flow(
        alpha=settings.get("alpha", 1e-5), t_span=(0.0, settings.get("end_time", 1.0))
    )
    load_released_weights(flow, released_weights(model, parallel))
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        carried = flow.transport(x)
        torch.testing.assert_close(carried.z, model(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(carried.log_p[0], model.log_prob(x[0]), atol=1e-5, rtol=0.0)


def test_names_are_those_of_the_public_code():
    names = set(released_weights(make_model(), parallel=True))
    assert "module.transforms.0.chain.1.odefunc.diffeq.layers.0._layer.weight" in names
    assert "module.transforms.0.chain.5.odefunc._num_evals" in names
    assert "module.transforms.1.chain.1.sqrt_end_time" in names
    nested = set(released_weights(make_model(regularized=True)))
    assert "transforms.0.chain.1.odefunc.odefunc.diffeq.layers.1._layer.bias" in nested


def test_a_learned_end_time_is_the_stored_one():
    flow = make_flow(learn_t1=True)
    load_released_weights(flow, released_weights(make_model(end_time=0.75)))
    assert [block.horizon.end_time for block in flow.blocks] == pytest.approx([0.75] * 6)


def test_weights_without_an_end_time_keep_the_flows_own():
    weights = released_weights(make_model())
    for name in [name for name in weights if name.endswith("sqrt_end_time")]:
        del weights[name]
    flow = make_flow(t_span=(0.0, 0.5))
    load_released_weights(flow, weights)
    assert flow.blocks[0].horizon.end_time == 0.5


class Scaling(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, t, y):
        return self.a * y


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 1}, r"weights of 3 blocks for a flow of images \(1, 8, 8\), but got 6"),
        ({"min_size": 8}, "weights of 2 blocks .* Build the flow with the image size"),
        (
            {"vector_field": lambda channels: ConvFlowField(channels, (4,))},
            r"block at \(0, 1\) to have the shapes .*\(4, 2, 3, 3\).*\(3, 2, 3, 3\).*`hidden`",
        ),
        ({"vector_field": lambda channels: ConvFlowField(channels, (3, 3))}, "`hidden`"),
        ({"vector_field": Scaling}, "fields to be ConvFlowField, but got Scaling"),
        ({"data_at": "t1"}, "data_at='t0' and t0 = 0, .* but got data_at='t1'"),
        ({"t_span": (0.5, 1.0)}, r"but got data_at='t0' and t_span = \(0.5, 1\)"),
        (
            {"t_span": (0.0, 2.0)},
            r"t1 = 1, the end time that the block at \(0, 1\) .* has 2\. Set `t_span`, or",
        ),
    ],
)
def test_weights_of_another_flow_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_released_weights(make_flow(**settings), released_weights(make_model()))


@pytest.mark.parametrize(
    "name",
    [
        "transforms.0.chain.1.odefunc.diffeq.layers.0._hyper_bias.weight",
        "transforms.0.chain.0.moving_mean",
        "chain.0.odefunc.diffeq.layers.0._layer.weight",
        "optimizer",
    ],
)
def test_names_of_another_model_are_refused(name):
    weights = {**released_weights(make_model()), name: torch.zeros(1)}
    with pytest.raises(ValueError, match=rf"Expected names such as .* but got \['{name}'\]"):
        load_released_weights(make_flow(), weights)


def test_no_weights_are_refused():
    with pytest.raises(ValueError, match="but got none"):
        load_released_weights(make_flow(), {})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_checkpoints_are_read_in_both_file_formats(tmp_path, bare, zipped):
    weights = released_weights(make_model())
    extras = {"args": argparse.Namespace(dims="64,64,64"), "fixed_z": torch.zeros(1)}
    torch.save(
        weights if bare else {"state_dict": weights, **extras},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=zipped,
    )
    found = read_released_weights(tmp_path / "weights.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Expected a checkpoint at .*weights\.pth, but .* Give"
    ):
        read_released_weights(tmp_path / "weights.pth")


class Command:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Command()}, "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="without running its code failed"):
        read_released_weights("x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("content", "got"), [([torch.zeros(1)], "list"), ({"state_dict": {"a": 1}}, "dict")]
)
def test_a_file_of_something_else(tmp_path, content, got):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"to hold a `state_dict` of tensors, but got {got}"):
        read_released_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: -1 if damage == "truncated" else None])
    message = r"Expected .*weights\.pth to be a checkpoint .*\. Get the file from its source again"
    with pytest.raises(ValueError, match=message):
        read_released_weights(path)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(ValueError, match="to be a checkpoint of tensors and plain values"):
        read_released_weights(tmp_path / "x.pth")


def test_image_sizes_of_the_published_models():
    for shape, n in (((1, 28, 28), 10), ((3, 32, 32), 14)):
        model = ReleasedModel(shape, (2, 2, 2))
        flow = MultiScaleCNF(shape, lambda channels: ConvFlowField(channels, (2, 2, 2)))
        assert len(flow.blocks) == n
        load_released_weights(flow, released_weights(model))
        ours = [p for block in flow.blocks for p in block.vector_field.parameters()]
        theirs = list(model.parameters())
        assert len(ours) == len(theirs) == 8 * n
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
