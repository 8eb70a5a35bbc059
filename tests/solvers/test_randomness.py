import pytest
import torch
from torch import nn

from steer_lightning.callbacks.nfe_monitor import _CountCall
from steer_lightning.nn import MLPField
from steer_lightning.penalties.attached import AttachedProbe
from steer_lightning.solvers import SolveStats
from steer_lightning.solvers.randomness import randomness, suspects


class Layered(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), *layers, nn.Linear(8, 2))

    def forward(self, t, y):
        return self.net(y)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, t, y):
        noise = torch.randn(y.shape, generator=self.generator)
        return torch.randn_like(y) + noise


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, t, y):
        self.calls += 1
        return y


DIFFER = "two evaluations at one point differ"
BUFFERS = "every evaluation changes its buffers"
POINT = (torch.tensor(0.3), torch.linspace(-1.0, 1.0, 10).reshape(5, 2))


@pytest.mark.parametrize(
    ("field", "expected", "layers"),
    [
        (Layered(nn.Dropout(0.3)), DIFFER, [nn.Dropout]),
        (Layered(nn.AlphaDropout(0.3)), DIFFER, [nn.AlphaDropout]),
        (Layered(nn.RReLU()), DIFFER, [nn.RReLU]),
        (Layered(nn.BatchNorm1d(8)), BUFFERS, [nn.BatchNorm1d]),
        (Layered(nn.Dropout(0.3), nn.BatchNorm1d(8)), DIFFER, [nn.Dropout, nn.BatchNorm1d]),
        (Layered(nn.utils.spectral_norm(nn.Linear(8, 8))), DIFFER, []),
        (Noisy(), DIFFER, []),
        (Counts(), BUFFERS, []),
        (Layered(nn.Dropout(0.0)), None, []),
        (Layered(nn.Dropout(0.3)).eval(), None, []),
        (Layered(nn.BatchNorm1d(8)).eval(), None, []),
        (Layered(nn.LayerNorm(8), nn.Tanh()), None, []),
        (MLPField(2, (8,)), None, []),
    ],
    ids=str,
)
def test_it_is_found_and_its_layers_are_named(field, expected, layers):
    assert randomness(field, *POINT) == expected
    assert [type(layer) for layer in suspects(field)] == layers


def test_recurrent_layers_and_attention_have_dropout_of_their_own():
    layers = nn.ModuleList(
        [nn.GRU(2, 2, num_layers=2, dropout=0.1), nn.MultiheadAttention(2, 1, dropout=0.1)]
    )
    assert suspects(layers) == list(layers)
    assert suspects(nn.GRU(2, 2)) == suspects(lambda t, y: y) == []


def test_functions_and_tuples_are_looked_at_too_and_nan_is_not_taken_for_noise():
    t, y = POINT
    assert randomness(lambda t, y: (y[0], torch.rand_like(y[1])), t, (y, y)) == DIFFER
    assert randomness(lambda t, y: (y[0], y[1]), t, (y, y)) is None
    y = y.clone()
    y[0] = float("nan")
    assert randomness(MLPField(2, (8,)), t, y) is None
    assert randomness(lambda t, y: y * float("inf"), t, y) is None


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (Layered(nn.Dropout(0.3), nn.BatchNorm1d(8)), DIFFER),
        (Noisy(), DIFFER),
        (Counts(), BUFFERS),
    ],
    ids=["layers", "noise", "counts"],
)
def test_nothing_is_disturbed(field, expected):
    buffers = {name: buffer.clone() for name, buffer in field.named_buffers()}
    generator, stats = getattr(field, "generator", torch.Generator()), SolveStats(nfe_forward=5)
    field.register_forward_hook(_CountCall(stats))
    (probe := AttachedProbe(field)).start(0)
    before, own = torch.get_rng_state(), generator.get_state()
    assert randomness(field, *POINT) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), own)
    assert all(torch.equal(b, buffers[name]) for name, b in field.named_buffers())
    assert stats.nfe_forward == 5
    assert probe.collect() == []
    assert all(p.grad is None for p in field.parameters())


def test_a_field_that_breaks_down_leaves_no_trace_either():
    class Breaks(nn.Module):
        def forward(self, t, y):
            torch.rand(3)
            raise KeyError("mine")

    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        randomness(Breaks(), *POINT)
    assert torch.equal(torch.get_rng_state(), before)
