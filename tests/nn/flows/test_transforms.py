import re

import pytest
import torch

from steer_lightning.nn.flows.transforms import Logit
from tests.helpers.problems import jacobians


@pytest.mark.parametrize("alpha", [0.0, 1e-5, 0.05, 0.4])
def test_logit_against_its_formula_and_jacobian(alpha):
    logit, x = Logit(alpha), torch.rand(3, 1, 2, 3, dtype=torch.float64)
    y, log_det = logit(x)
    torch.testing.assert_close(y, torch.logit(alpha + (1.0 - 2.0 * alpha) * x))
    torch.testing.assert_close(logit.inverse(y), x, rtol=0.0, atol=1e-12)
    jacobian = jacobians(lambda t, x: logit(x)[0], torch.zeros(()), x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_unit_interval_are_finite(dtype):
    y, log_det = Logit(1e-5)(torch.tensor([[0.0, 1.0]], dtype=dtype))
    expected = torch.logit(torch.tensor([[1e-5, 1.0 - 1e-5]], dtype=torch.float64))
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=0.0)
    assert log_det.shape == (1,)
    assert bool(log_det.isfinite().all())
    infinite, _ = Logit(0.0)(torch.tensor([[0.0, 1.0]]))
    assert infinite.tolist() == [[-torch.inf, torch.inf]]


def test_the_inverse_leaves_the_unit_interval_where_there_is_no_image():
    x = Logit(0.05).inverse(torch.tensor([-100.0, 100.0]))
    torch.testing.assert_close(x, torch.tensor([-0.05 / 0.9, 0.95 / 0.9]))


@pytest.mark.parametrize("alpha", [-1e-6, 0.5, 1.0, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=re.escape(f"`alpha` in [0, 0.5), but got {alpha}")):
        Logit(alpha)
