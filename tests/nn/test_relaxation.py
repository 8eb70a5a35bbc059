import re

import pytest
import torch

from steer_lightning.nn import RelaxationField
from steer_lightning.solvers import RosenbrockSolver
from tests.helpers.problems import times

RATES = [1e-3, 1.0, 1e3]


def make_field(**arguments):
    return RelaxationField(RATES, (8,), (1.0, 1e-3), **arguments).double()


def test_at_first_it_relaxes_to_the_target_at_the_given_rates():
    y0 = times(1.0, -1.0, 0.1)[None]
    solver = RosenbrockSolver(rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        y = solver.solve(make_field(target=0.5), y0, times(0.0, 2.0)).ys[-1]
    expected = 0.5 + (y0 - 0.5) * torch.exp(-2.0 * times(*RATES))
    torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-6)


def test_by_hand_once_it_has_learned():
    field = make_field(sharpness=2.0)
    last = field.network[-1]
    torch.nn.init.normal_(last.weight)
    y = times(0.3, 0.0, -2e-3, 1.0, 1e-5, 0.5).reshape(2, 3)
    seen = torch.cat(
        [torch.asinh(y) / times(1.0).asinh(), torch.asinh(1e3 * y) / times(1e3).asinh()], 1
    )
    first = field.network[0]
    out = torch.tanh(seen @ first.weight.T + first.bias) @ last.weight.T + last.bias
    expected = times(*RATES) * torch.exp(2.0 * out[:, :3]) * (out[:, 3:] - y)
    torch.testing.assert_close(field(times(0.0)[0], y), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ["rates", "magnitudes"])
@pytest.mark.parametrize("bad", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_sizes_are_positive_and_finite(name, bad):
    message = re.escape(f"Expected one or more positive and finite `{name}`, but got {bad}.")
    with pytest.raises(ValueError, match=message):
        RelaxationField(**{"rates": [1.0], name: bad})
