import pytest
import torch
from scipy import stats

from steer_lightning.functional import standard_normal_log_prob


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 2, 3)])
def test_equals_scipys_normal_density(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = stats.norm.logpdf(z.numpy()).reshape(len(z), -1).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(z), torch.from_numpy(expected))
