import pytest
import torch
from torch import nn

from steer_lightning.nn import Augmented, ConvField, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 5)])
def test_zeros_follow_the_input_along_axis_1(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y0 = Augmented(nn.Identity(), 3)(x)
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


def test_what_cannot_be_augmented_raises():
    with pytest.raises(ValueError, match="Expected `n_extra` >= 1, but got 0"):
        Augmented(nn.Identity(), 0)
    with pytest.raises(ValueError, match=r"\(B, D\) or \(B, C, H, W\), but got \(4,\). Give"):
        Augmented(nn.Identity(), 1)(torch.zeros(4))
