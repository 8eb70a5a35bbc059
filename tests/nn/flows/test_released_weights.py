import argparse
import os

import pytest
import torch

from steer_lightning.nn import ConvField, ConvFlowField, MultiScaleCNF
from steer_lightning.nn.flows.released_weights import load_released_weights, read_released_weights
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.models import image_flow
from tests.helpers.released_model import ReleasedModel, released_weights

SHAPE, HIDDEN = (1, 8, 8), (3,)


def make_model(**settings):
    return ReleasedModel(SHAPE, HIDDEN, **settings).double()


def make_flow(**settings):
    solver = TorchdiffeqSolver(rtol=1e-9, atol=1e-9)
    return image_flow(SHAPE, **{"solver": solver, "trace_estimator": "exact", **settings}).double()


@pytest.mark.parametrize("released", [False, True])
def test_density_is_that_of_the_model_the_weights_are_of(released):
    settings = {"regularized": True, "alpha": 0.05, "end_time": 0.5} if released else {}
    model = make_model(**settings)
    weights = released_weights(model, parallel=released)
    prefix = "module.transforms.0.chain.1.odefunc." if released else "transforms.0.chain.1."
    assert f"{prefix}odefunc.diffeq.layers.0._layer.weight" in weights
    flow = make_flow(
        alpha=settings.get("alpha", 1e-5), t_span=(0.0, settings.get("end_time", 1.0))
    )
    load_released_weights(flow, weights)
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        carried = flow.transport(x)
        torch.testing.assert_close(carried.z, model(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(carried.log_p[0], model.log_prob(x[0]), atol=1e-5, rtol=0.0)


def test_a_learned_end_time_is_the_stored_one_and_without_one_the_flow_keeps_its_own():
    weights, flow = released_weights(make_model(end_time=0.75)), make_flow(learn_t1=True)
    load_released_weights(flow, weights)
    assert [block.horizon.end_time for block in flow.blocks] == pytest.approx([0.75] * 6)
    flow = make_flow(t_span=(0.0, 0.5))
    load_released_weights(flow, {k: x for k, x in weights.items() if "end_time" not in k})
    assert flow.blocks[0].horizon.end_time == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 1}, r"weights of 3 blocks for a flow of images \(1, 8, 8\), but got 6"),
        (
            {"vector_field": lambda channels: ConvFlowField(channels, (4,))},
            r"block at \(0, 1\) to have the shapes .*\(4, 2, 3, 3\).*\(3, 2, 3, 3\).*`hidden`",
        ),
        ({"vector_field": lambda channels: ConvFlowField(channels, (3, 3))}, "`hidden`"),
        ({"vector_field": ConvField}, "flow of ConvFlowField, .* but got ConvField"),
        ({"data_at": "t1"}, "data_at='t0' and t0 = 0 .* data_at='t1'"),
        ({"t_span": (0.5, 1.0)}, r"data_at='t0' and t_span = \(0.5, 1\)"),
        (
            {"t_span": (0.0, 2.0)},
            r"t1 = 1, the end time that the block at \(0, 1\) .* has 2\. Set `t_span`, or",
        ),
    ],
)
def test_weights_of_another_flow_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_released_weights(make_flow(**settings), released_weights(make_model()))


@pytest.mark.parametrize("name", ["transforms.0.chain.0.moving_mean", "optimizer", None])
def test_names_of_another_model_are_refused(name):
    weights = {**released_weights(make_model()), name: torch.zeros(1)} if name else {}
    got = rf"\['{name}'\]" if name else "none"
    with pytest.raises(ValueError, match=rf"Expected names such as .* but got {got}"):
        load_released_weights(make_flow(), weights)


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


class Command:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"x\.pth"),
        (Command(), ValueError, "(?s)without running its code failed.*source again"),
        ([torch.zeros(1)], ValueError, "to hold a `state_dict` of tensors, but got list"),
        ({"a": 1}, ValueError, "to hold a `state_dict` of tensors, but got dict"),
    ],
)
def test_other_files_are_refused_and_no_code_is_run(
    tmp_path, monkeypatch, content, error, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        torch.save({"state_dict": content}, "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(error, match=message):
        read_released_weights("x.pth")
    assert not (tmp_path / "ran").exists()


def test_image_sizes_of_the_published_models():
    for shape, n in (((1, 28, 28), 10), ((3, 32, 32), 14)):
        model = ReleasedModel(shape, (2, 2, 2))
        flow = MultiScaleCNF(shape, lambda channels: ConvFlowField(channels, (2, 2, 2)))
        load_released_weights(flow, released_weights(model))
        ours = [p for block in flow.blocks for p in block.vector_field.parameters()]
        theirs = list(model.parameters())
        assert len(ours) == len(theirs) == 8 * n
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
