"""Properties of every vector field, against references that know nothing of it."""

import pytest
import torch

import steer_lightning.nn
from steer_lightning.nn import (
    CompiledField,
    ConcatField,
    ConcatSquashField,
    ConvField,
    ConvFlowField,
    MLPField,
    RelaxationField,
)
from steer_lightning.nn.trace import exact_divergence, exact_jacobian, jvp
from tests.helpers.models import lively
from tests.helpers.problems import jacobians

VECTOR, IMAGE = (3,), (2, 2, 3)
FIELDS = {
    "mlp": (lambda: MLPField(3, (5, 4)), VECTOR),
    "mlp, softplus": (lambda: MLPField(3, (5,), "softplus"), VECTOR),
    "mlp, autonomous": (lambda: MLPField(3, (5,), time_dependent=False), VECTOR),
    "relaxation": (lambda: RelaxationField([0.5, 1.0, 2.0], (5,), (1.0, 0.1)), VECTOR),
    "concat": (lambda: ConcatField(3, (5, 4)), VECTOR),
    "concat-squash": (lambda: ConcatSquashField(3, (6,)), VECTOR),
    "concat-squash, deep": (lambda: ConcatSquashField(3, (7, 6, 5)), VECTOR),
    "concat-squash, 1-D": (lambda: ConcatSquashField(1, (8,)), (1,)),
    "conv": (lambda: ConvField(2, 5), IMAGE),
    "conv, channels first": (lambda: ConvField(2, 5, channels_last=False), IMAGE),
    **{
        f"flow, {activation}, {channels_last}": (
            lambda a=activation, c=channels_last: ConvFlowField(2, (5, 4), a, c),
            IMAGE,
        )
        for activation in ("softplus", "tanh")
        for channels_last in (True, False)
    },
}
both_times = pytest.mark.parametrize(
    "t", [torch.tensor(0.3).double(), torch.tensor([0.3, -1.0, 2.0]).double()], ids=["one", "each"]
)


@pytest.fixture(params=FIELDS)
def case(request):
    make, shape = FIELDS[request.param]
    torch.manual_seed(0)
    return lively(make().double()), torch.randn(3, *shape, dtype=torch.float64)


def test_no_field_is_left_out():
    public = (getattr(steer_lightning.nn, name) for name in steer_lightning.nn.__all__)
    fields = {x for x in public if x.__name__.endswith("Field")} - {CompiledField}
    assert {type(make()) for make, _ in FIELDS.values()} == fields


@both_times
def test_a_sample_sees_its_own_time_and_no_other_sample(case, t):
    field, y = case
    dy = field(t, y)
    assert dy.shape == y.shape
    for i in range(3):
        alone = field(t[i] if t.ndim else t, y[i : i + 1])
        torch.testing.assert_close(dy[i : i + 1], alone)


@both_times
def test_value_tangent_and_their_gradients_are_those_of_forward_mode(case, t):
    field, y = case
    e, results = torch.randn_like(y), []
    t, y = t.clone().requires_grad_(), y.requires_grad_()
    for value, tangent in (
        jvp(field, t, y, e),
        torch.func.jvp(lambda y: field.forward(t, y), (y,), (e,)),
    ):
        loss = (value.square() * tangent.sin()).sum() + (e * tangent).sum()
        inputs = (t, y, *field.parameters())
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        results.append((value, tangent, *gradients))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@both_times
def test_jacobian_divergence_and_tangent_are_those_of_reverse_mode(case, t):
    field, y = case
    e = torch.randn_like(y)
    value, jacobian = exact_jacobian(field, t, y)
    expected = jacobians(field, t, y)
    trace = expected.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(value, field(t, y))
    torch.testing.assert_close(jacobian.permute(1, 2, 0), expected)
    torch.testing.assert_close(
        jvp(field, t, y, e)[1].flatten(1), torch.einsum("bij,bj->bi", expected, e.flatten(1))
    )
    for way in (exact_divergence, *own_divergence(field)):
        torch.testing.assert_close(way(field, t, y), (value, trace))


def own_divergence(field):
    return [type(field).value_and_divergence] if hasattr(field, "value_and_divergence") else []


@both_times
@pytest.mark.parametrize("case", [n for n in FIELDS if "squash" in n], indirect=True)
def test_the_gradients_of_an_own_divergence_are_those_of_forward_mode(case, t):
    field, y = case
    (own,) = own_divergence(field)
    results, t, y = [], t.clone().requires_grad_(), y.requires_grad_()
    for value, divergence in (own(field, t, y), exact_divergence(field.forward, t, y)):
        inputs = (t, y, *field.parameters())
        loss = value.square().sum() + divergence.square().sum()
        results.append(
            torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        )
    torch.testing.assert_close(*results)
    assert all(bool(gradient.any()) for gradient in results[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_numbers_are_the_same(case, mode):
    field, y = case
    t, e = torch.tensor([0.3, -1.0, 2.0]).double(), torch.ones_like(y)

    def everything():
        divergences = [way(field, t, y) for way in (exact_divergence, *own_divergence(field))]
        parts = (exact_jacobian(field, t, y), jvp(field, t, y, e), *divergences)
        return [x for part in parts for x in part]

    expected = everything()
    with mode():
        found = everything()
    assert not any(part.requires_grad for part in found)
    assert all(torch.equal(a, b.detach()) for a, b in zip(found, expected, strict=True))
