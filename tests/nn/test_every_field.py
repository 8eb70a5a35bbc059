"""Properties of every vector field, against references that know nothing of it."""

import re

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
from steer_lightning.nn.trace import exact_jacobian, jvp
from tests.helpers.models import lively
from tests.helpers.problems import jacobians

VECTOR, IMAGE = (3,), (2, 2, 3)
FIELDS = {
    "mlp": (lambda: MLPField(3, (5, 4)), VECTOR),
    "mlp, softplus": (lambda: MLPField(3, (5,), "softplus"), VECTOR),
    "mlp, autonomous": (lambda: MLPField(3, (5,), time_dependent=False), VECTOR),
    "relaxation": (lambda: RelaxationField([0.5, 1.0, 2.0], (5,), (1.0, 0.1)), VECTOR),
    "concat": (lambda: ConcatField(3, (5, 4)), VECTOR),
    "conv": (lambda: ConvField(2, 5), IMAGE),
    "conv, channels first": (lambda: ConvField(2, 5, channels_last=False), IMAGE),
}
OWN_WAYS = {
    "concat-squash": (lambda: ConcatSquashField(3, (6,)), VECTOR),
    "concat-squash, deep": (lambda: ConcatSquashField(3, (7, 6, 5)), VECTOR),
    "concat-squash, 1-D": (lambda: ConcatSquashField(1, (8,)), (1,)),
    "flow": (lambda: ConvFlowField(2, (5, 4)), IMAGE),
    "flow, channels first": (lambda: ConvFlowField(2, (5, 4), "softplus", False), IMAGE),
    "flow, tanh": (lambda: ConvFlowField(2, (5, 4), "tanh"), IMAGE),
    "flow, tanh, channels first": (lambda: ConvFlowField(2, (5, 4), "tanh", False), IMAGE),
}
FIELDS |= OWN_WAYS
both_times = pytest.mark.parametrize(
    "t", [torch.tensor(0.3).double(), torch.tensor([0.3, -1.0, 2.0]).double()], ids=["one", "each"]
)


@pytest.fixture(params=FIELDS)
def case(request):
    make, shape = FIELDS[request.param]
    return lively(make().double()), torch.randn(3, *shape, dtype=torch.float64)


def own_divergence(field):
    return [type(field).value_and_divergence] if hasattr(field, "value_and_divergence") else []


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
    for own in own_divergence(field):
        torch.testing.assert_close(own(field, t, y), (value, trace))


@both_times
@pytest.mark.parametrize("case", OWN_WAYS, indirect=True)
def test_own_ways_and_their_gradients_are_those_of_forward_mode(case, t):
    field, y = case
    e, t, y = torch.randn_like(y), t.clone().requires_grad_(), y.requires_grad_()

    def with_gradients(value, derivative):
        loss = value.square().sum() * derivative.sin().sum()
        return value, derivative, *torch.autograd.grad(loss, (t, y, *field.parameters()))

    plain = field.forward  # no more than a function
    pairs = [(field.jvp(t, y, e), jvp(plain, t, y, e))]
    for own in own_divergence(field):
        value, jacobian = exact_jacobian(plain, t, y)
        pairs.append((own(field, t, y), (value, jacobian.diagonal(dim1=0, dim2=2).sum(1))))
    for found, expected in pairs:
        found, expected = with_gradients(*found), with_gradients(*expected)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert all(bool(part.any()) for part in found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_numbers_are_the_same(case, mode):
    field, y = case
    t, e = torch.tensor([0.3, -1.0, 2.0]).double(), torch.ones_like(y)

    def everything():
        divergences = [own(field, t, y) for own in own_divergence(field)]
        parts = (exact_jacobian(field, t, y), jvp(field, t, y, e), *divergences)
        return [x for part in parts for x in part]

    expected = everything()
    with mode():
        found = everything()
    assert not any(part.requires_grad for part in found)
    assert all(torch.equal(a, b.detach()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPField(0), "Expected positive layer widths, but got 0 and (64, 64)"),
        (lambda: MLPField(2, (8, 0)), "Expected positive layer widths, but got 2 and (8, 0)"),
        (lambda: MLPField(2, (8,), "tanj"), "but got 'tanj'. Did you mean 'tanh'?"),
        (lambda: ConcatField(0), "Expected positive layer widths, but got 0 and (100,)"),
        (lambda: ConcatField(2, (8,), "rely"), "but got 'rely'. Did you mean 'relu'?"),
        (lambda: ConvField(1, 0), "Expected positive layer widths, but got 1 and (0,)"),
        (lambda: RelaxationField([1.0], (0,)), "Expected positive layer widths, but got 1 and (0"),
        (lambda: RelaxationField([1.0], activation="gelu"), "`activation` to be one of"),
        (lambda: ConcatSquashField(0), "Expected positive layer widths, but got 0 and (64, 64"),
        (lambda: ConcatSquashField(2, ()), "Expected at least one hidden layer, but got none"),
        (lambda: ConvFlowField(1, (8, 0)), "Expected positive layer widths, but got 1 and (8, 0)"),
        (lambda: ConvFlowField(1, ()), "Expected at least one hidden layer, but got none"),
        (lambda: ConvFlowField(1, activation="softpls"), "Did you mean 'softplus'?"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
