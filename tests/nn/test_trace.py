import pytest
import torch
from torch import nn

from steer_lightning.nn.trace import NOISES, exact_jacobian, jvp, trace_noise


def test_a_fields_own_way_is_taken():
    class Own(nn.Module):
        def jvp(self, t, y, probe):
            return 2.0 * y, 2.0 * probe

    y = torch.ones(3, 2)
    assert torch.equal(jvp(Own(), torch.tensor(0.0), y, 3.0 * y)[1], 6.0 * y)
    jacobian = exact_jacobian(Own(), torch.tensor(0.0), y)[1]
    assert torch.equal(jacobian, 2.0 * torch.eye(2)[:, None].expand(2, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_like_the_state_and_white(noise, dtype):
    y = torch.full((20_000, 2, 2), 7.0, dtype=dtype)
    e = trace_noise(y, noise, torch.Generator().manual_seed(0))
    assert (e.shape, e.dtype, e.device) == (y.shape, y.dtype, y.device)
    flat = e.flatten(1).double()
    torch.testing.assert_close(flat.mean(0), torch.zeros(4).double(), atol=0.03, rtol=0.0)
    torch.testing.assert_close(flat.T @ flat / 20_000, torch.eye(4).double(), atol=0.05, rtol=0.0)
    if noise == "rademacher":
        assert bool((e.abs() == 1.0).all())
    else:
        assert float(flat.pow(4).mean()) == pytest.approx(3.0, abs=0.1)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"Expected `noise` .*'radmacher'\. Did you mean 'rade"):
        trace_noise(torch.zeros(2, 3), "radmacher")
