import torch

from steer_lightning.utils.autograd import in_backward


class Probe(torch.autograd.Function):
    """The identity, which notes what ``in_backward`` says in both passes."""

    seen: list[bool] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        Probe.seen.append(in_backward())
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Probe.seen.append(in_backward())
        return grad


def test_true_only_inside_the_engine():
    Probe.seen.clear()
    x = torch.ones(2, requires_grad=True)
    y = Probe.apply(x).sum()
    torch.autograd.grad(y, x)
    assert Probe.seen == [False, True]
    assert not in_backward()
