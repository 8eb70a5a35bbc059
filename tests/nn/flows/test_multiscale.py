"""The structure of a flow of images: scales, blocks, latents, horizons, arguments."""

import math
import re

import pytest
import torch
from torch import nn

from steer_lightning import steer
from steer_lightning.nn import ConvFlowField, MultiScaleCNF
from steer_lightning.nn.flows.multiscale import scale_shapes
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.models import image_flow, lively


def shapes_of_blocks(flow):
    return [block.event_shape for block in flow.blocks]


@pytest.mark.parametrize(
    ("event_shape", "n_blocks", "latent_shapes"),
    [
        ((1, 28, 28), 10, [(2, 14, 14), (4, 7, 7), (4, 7, 7)]),
        ((3, 32, 32), 14, [(6, 16, 16), (12, 8, 8), (24, 4, 4), (24, 4, 4)]),
        ((1, 14, 14), 6, [(2, 7, 7), (2, 7, 7)]),
        ((3, 4, 7), 2, [(3, 4, 7)]),
    ],
)
def test_blocks_and_latents_of_the_image_sizes_in_use(event_shape, n_blocks, latent_shapes):
    flow = image_flow(event_shape)
    assert len(flow.blocks) == n_blocks
    assert flow.latent_shapes == latent_shapes
    assert flow.latent_shape == (math.prod(event_shape),)
    assert sum(math.prod(shape) for shape in latent_shapes) == math.prod(event_shape)


def test_blocks_stand_in_order_before_and_after_each_squeeze():
    flow = image_flow((1, 8, 8), n_blocks=1)
    assert shapes_of_blocks(flow) == [(1, 8, 8), (4, 4, 4), (2, 4, 4)]
    assert [block.vector_field.layers[0].in_channels - 1 for block in flow.blocks] == [1, 4, 2]
    paths = [name for name, module in flow.named_modules() if module in flow.blocks]
    assert paths == ["scales.0.before.0", "scales.0.after.0", "scales.1.before.0"]
    assert shapes_of_blocks(image_flow((1, 8, 8), n_blocks=2))[::2] == shapes_of_blocks(flow)


@pytest.mark.parametrize(("min_size", "n_scales"), [(2, 3), (3, 3), (4, 2), (5, 2)])
def test_scales_end_at_the_smallest_size(min_size, n_scales):
    assert scale_shapes((1, 12, 20), min_size) == [(1, 12, 20), (2, 6, 10), (4, 3, 5)][:n_scales]


@pytest.mark.parametrize("data_at", ["t0", "t1"])
def test_latents_are_flat_and_those_that_left_first_come_first(data_at):
    flow = image_flow((1, 8, 8), alpha=None, n_blocks=1, data_at=data_at).double()
    for block, shift in zip(flow.blocks, (10.0, 100.0, 1000.0), strict=True):
        nn.init.constant_(block.vector_field.layers[-1].bias, shift)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    z, delta_log_p = flow(x)
    sign = 1.0 if data_at == "t0" else -1.0
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3)
    squeezed = windows.reshape(2, 4, 4, 4) + sign * 110.0
    kept, latent = squeezed[:, :2] + sign * 1000.0, squeezed[:, 2:]
    expected = torch.cat([latent.flatten(1), kept.flatten(1)], dim=1)
    torch.testing.assert_close(z, expected)
    assert not delta_log_p.any()
    torch.testing.assert_close(flow.inverse(z), x)


def test_every_block_has_an_end_time_of_its_own():
    flow = lively(image_flow((1, 8, 8)))
    x = torch.rand(2, 1, 8, 8)

    def log_prob():
        return flow.log_prob(x, generator=torch.Generator().manual_seed(0))

    nominal = log_prob()
    paths = ("0.before.0", "0.before.1", "0.after.0", "0.after.1", "1.before.0")
    with steer(flow, 0.5, step=0, seed=1) as ends:
        moved = log_prob()
        in_force = [block.horizon.in_force()["end_time"] for block in flow.blocks]
    assert list(ends)[:5] == [f"steer/scales.{path}.horizon/end_time" for path in paths]
    assert list(ends.values()) == in_force
    assert len(set(in_force)) == 6
    assert all(0.5 <= end <= 1.5 for end in in_force)
    assert not torch.allclose(moved, nominal)
    assert torch.equal(log_prob(), nominal)


def test_settings_reach_every_block():
    settings = {
        "solver": FixedGridSolver("rk4", 1),
        "eval_solver": FixedGridSolver("euler", 3),
        "t_span": (0.5, 2.0),
        "data_at": "t1",
        "learn_t1": True,
        "t1_range": (1.0, 3.0),
        "trace_estimator": "exact",
        "noise": "rademacher",
        "compile": True,
    }
    for block in image_flow((1, 8, 8), **settings).blocks:
        for name in ("solver", "eval_solver", "data_at", "trace_estimator", "noise"):
            assert getattr(block, name) == settings[name]
        assert (block.horizon.t0, block.horizon.t1) == settings["t_span"]
        assert block.horizon.learned_t1 is not None
        assert block.horizon.t1_range == settings["t1_range"]
        assert block._compile
    for block in image_flow((1, 8, 8), eval_end_time=0.5).blocks:
        assert block.horizon.eval_end_time == 0.5
    flow = MultiScaleCNF((1, 4, 4))  # the defaults are those of the papers
    assert flow.logit.alpha == 1e-5
    for block in flow.blocks:
        assert isinstance(block.vector_field, ConvFlowField)
        assert (block.data_at, block.trace_estimator) == ("t0", "hutchinson")
        assert (block.noise, block.horizon.learned_t1) == ("gaussian", None)


@pytest.mark.parametrize(
    ("event_shape", "settings", "message"),
    [
        ((28, 28), {}, "Expected `event_shape` = (C, H, W) and `min_size` >= 2, but got (28, 28)"),
        ((1, 0, 4), {}, "(C, H, W) and `min_size` >= 2, but got (1, 0, 4) and 4."),
        ((1, 4, 4), {"min_size": 1}, "but got (1, 4, 4) and 1."),
        ((1, 3, 8), {}, "at least `min_size` = 4 on each side, but got 3 x 8"),
        (
            (1, 28, 28),
            {"min_size": 3},
            "but 28 x 28 comes to 7 x 7 at scale 3. Use another image size, or raise `min_size` "
            "to more than 3.",
        ),
        ((1, 8, 9), {}, "but 8 x 9 comes to 8 x 9 at scale 1"),
        ((1, 4, 4), {"n_blocks": 0}, "Expected `n_blocks` >= 1, but got 0"),
    ],
)
def test_bad_arguments_raise(event_shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        image_flow(event_shape, **settings)


def test_wrong_shapes_raise():
    flow = image_flow((1, 4, 4))
    for call in (flow, flow.log_prob, flow.transport):
        for shape in ((2, 1, 4, 5), (2, 3, 4, 4), (1, 4, 4), (2, 16)):
            message = f"Expected images of shape (B, 1, 4, 4), but got {shape}"
            with pytest.raises(ValueError, match=re.escape(message)):
                call(torch.zeros(shape))
    with pytest.raises(
        ValueError, match=r"Expected latents of shape \(B, 16\), but got \(2, 1, 4"
    ):
        flow.inverse(torch.zeros(2, 1, 4, 4))
