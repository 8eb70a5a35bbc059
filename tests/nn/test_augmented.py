import pytest
import torch
from torch import nn

from steer_lightning.horizon import SpanHorizon
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.nn import Augmented, ConvField, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.problems import CosineField


class Keep(nn.Module):
    """A block that gives the state it starts from."""

    def forward(self, y0):
        return y0


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 5)])
def test_zeros_follow_the_input_along_axis_1(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y0 = Augmented(Keep(), 3)(x)
    assert (y0.shape, y0.dtype) == ((3, 5, *shape[2:]), x.dtype)
    assert torch.equal(y0[:, :2], x)
    assert not y0[:, 2:].any()


@pytest.mark.parametrize(
    ("field", "shape"), [(MLPField(5, (4,)), (3, 2)), (ConvField(5, 4), (3, 2, 4, 4))]
)
def test_solves_the_block_from_the_augmented_state(field, shape):
    block, x = ODEBlock(field, FixedGridSolver("rk4", 2)), torch.randn(shape)
    y0 = torch.cat([x, torch.zeros(3, 3, *shape[2:])], dim=1)
    t_eval = torch.tensor([0.0, 0.4, 1.0])
    augmented = Augmented(block, 3)
    assert torch.equal(augmented(x), block(y0))
    assert torch.equal(augmented(x, t_eval), block(y0, t_eval))


def test_end_times_reach_the_block_within():
    augmented = Augmented(ODEBlock(CosineField()), 1)
    (horizon,) = (m for m in augmented.modules() if isinstance(m, SpanHorizon))
    horizon.perturb(FixedOffset(0.5))
    x = torch.ones(2, 1, dtype=torch.float64)
    expected = CosineField().exact(torch.cat([x, 0.0 * x], dim=1), 0.0, 1.5)
    torch.testing.assert_close(augmented(x), expected, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("n_extra", [0, -1])
def test_nothing_to_append_raises(n_extra):
    with pytest.raises(ValueError, match=f"Expected `n_extra` >= 1, but got {n_extra}. Without"):
        Augmented(Keep(), n_extra)


def test_an_input_without_axis_1_raises():
    with pytest.raises(ValueError, match=r"\(B, D\) or \(B, C, H, W\), but got \(4,\). Give"):
        Augmented(Keep(), 1)(torch.zeros(4))
