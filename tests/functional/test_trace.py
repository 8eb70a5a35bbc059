import pytest
import torch
from torch import nn

from steer_lightning.functional import exact_divergence


class Field(nn.Module):
    """Mixes the features of a sample, never the samples; time acts on each."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        n = torch.Size(shape).numel()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(n, n, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        flat = y.reshape(len(y), -1)
        return (torch.tanh(flat @ self.weight.T) * flat + t.reshape(-1, 1) * flat).reshape_as(y)


@pytest.fixture(params=[(1,), (3,), (2, 2, 2)], ids=str)
def case(request):
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(4, *request.param, generator=generator, dtype=torch.float64)
    return Field(request.param), torch.tensor(0.3, dtype=torch.float64), y


def reference(field, t, y):
    """Trace of the Jacobian of each sample by itself."""
    traces = []
    for i, sample in enumerate(y):
        t_i = t[i] if t.ndim else t
        jacobian = torch.autograd.functional.jacobian(
            lambda x, t_i=t_i: field(t_i, x.reshape(1, *y.shape[1:])).flatten(), sample.flatten()
        )
        traces.append(jacobian.trace())
    return torch.stack(traces)


def test_equals_the_trace_of_the_jacobian(case):
    field, t, y = case
    value, divergence = exact_divergence(field, t, y)
    torch.testing.assert_close(value, field(t, y))
    torch.testing.assert_close(divergence, reference(field, t, y))


def test_a_time_for_each_sample(case):
    field, _, y = case
    t = torch.linspace(0.0, 1.0, len(y), dtype=torch.float64)
    _, divergence = exact_divergence(field, t, y)
    torch.testing.assert_close(divergence, reference(field, t, y))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(case, mode):
    field, t, y = case
    expected = reference(field, t, y)
    with mode():
        _, divergence = exact_divergence(field, t, y)
    torch.testing.assert_close(divergence, expected)


def test_can_be_trained_through():
    field = Field((2,))
    t = torch.tensor(0.3, dtype=torch.float64)
    y = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def outputs(weight, y):
        return exact_divergence(
            lambda t, y: torch.func.functional_call(field, {"weight": weight}, (t, y)), t, y
        )

    weight = field.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (weight, y.requires_grad_()))
