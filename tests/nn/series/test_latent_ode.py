"""Encoders and the decoder, against solves interval by interval."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import (
    LatentDecoder,
    MLPField,
    Observations,
    ODERNNEncoder,
    Posterior,
    RNNEncoder,
    observations,
)
from steer_lightning.nn.likelihood import standard_normal_kl
from steer_lightning.nn.series import make_series
from steer_lightning.solvers import AdaptiveSolver
from tests.helpers.problems import CosineField, LinearField, times

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
LENGTHS = torch.tensor([4, 3, 1])
SERIES = torch.stack([times(0.0, 0.3, 1.0, 1.2), times(0.5, 2.5, 3.0, 3.0), times(*[7.0] * 4)])
SHARED = SERIES[:1].expand(3, -1)
Z0 = torch.linspace(-1.0, 1.5, 12, dtype=torch.float64).view(2, 3, 2)  # (S, B, L)


def tight_decoder():
    return LatentDecoder(LinearField(), AdaptiveSolver(**TIGHT))


def interval_by_interval(field, z0, series, lengths, rates=None):
    """Each sample and interval by itself, from where the last one came out."""
    z = torch.empty(*z0.shape[:2], series.shape[1], z0.shape[2], dtype=torch.float64)
    for b, n in enumerate(lengths):
        state = z0[:, b]
        z[:, b] = state[:, None]
        for i in range(1, n):
            start, gap = series[b, i - 1], series[b, i] - series[b, i - 1]
            end = start + (gap if rates is None else rates[b, i - 1] * gap)
            state = odeint(field, state, torch.stack([start, end]), **TIGHT)[-1]
            z[:, b, i:] = state[:, None]  # padding stays at the last state
    return z


@pytest.mark.parametrize("series", [SERIES, SHARED])
@pytest.mark.parametrize("scope", [None, "batch", "sample"])
def test_the_decoder_solves_each_interval_from_the_end_of_the_stretched_one_before(series, scope):
    decoder, z0 = tight_decoder(), Z0
    lengths, rates = LENGTHS if series is SERIES else torch.full((3,), 4), None
    if scope is not None:
        decoder.horizon.perturb(EndTimeDraw("auto", key=4, scope=scope))
        rates = decoder.horizon.rates(series, lengths)
    z = decoder(z0, series, lengths)
    assert z.shape == (2, 3, 4, 2)
    assert torch.equal(z[:, :, 0], z0)
    expected = interval_by_interval(decoder.vector_field, z0, series, lengths, rates)
    torch.testing.assert_close(z, expected, rtol=1e-7, atol=1e-7)


def test_the_decoder_has_the_closed_forms_values_and_gradients():
    decoder, z0 = tight_decoder(), Z0.clone().requires_grad_()
    a, elapsed = decoder.vector_field.a, SERIES - SERIES[:, :1]
    flows = torch.linalg.matrix_exp(elapsed[..., None, None] * a)
    exact = torch.einsum("btij,sbj->sbti", flows, z0)
    z = decoder(z0, SERIES, LENGTHS)
    torch.testing.assert_close(z, exact, rtol=1e-8, atol=1e-8)
    grads = [torch.autograd.grad(ys.square().sum(), (z0, a)) for ys in (z, exact)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-7)


def test_the_decoder_takes_one_solve_whatever_the_times():
    nfe = []
    for n_times in (2, 500):
        decoder = LatentDecoder(LinearField())
        series = torch.linspace(0.0, 3.0, n_times, dtype=torch.float64).expand(3, -1)
        decoder(Z0, series, torch.full((3,), n_times))
        nfe.append(decoder.stats.nfe_forward)
    assert nfe[0] == nfe[1] > 0


def test_samples_of_a_single_time_stay_where_they_are():
    decoder, z0 = tight_decoder(), Z0
    decoder.horizon.perturb(EndTimeDraw("auto"))
    for n_times in (1, 3):
        z = decoder(z0, torch.ones(3, n_times, dtype=torch.float64), torch.ones(3).long())
        assert torch.equal(z, z0[:, :, None].expand(-1, -1, n_times, -1))
    assert decoder.stats.nfe_forward == 0
    assert decoder.horizon.solved


@pytest.mark.parametrize("wrong", [[1.0, 0.5, 0.0], [0.0, torch.nan, 1.0]])
def test_times_of_the_decoder_increase(wrong):
    decoder = LatentDecoder(MLPField(2, (4,), time_dependent=False))
    with pytest.raises(ValueError, match="`times` to be finite and to increase"):
        decoder(torch.zeros(1, 2, 2), torch.tensor([wrong, wrong]), torch.tensor([3, 3]))


def test_the_field_of_the_decoder_may_not_depend_on_time():
    for field in (CosineField(), MLPField(2)):
        with pytest.raises(ValueError, match=r"ignores time, with `autonomous = True`.*MLPField"):
            LatentDecoder(field)


def series_batch():
    """Samples of 5, 3 and 1 times; values tell sample and time, some are not observed."""
    masks = [
        torch.tensor([[0, 0], [1, 0], [0, 0], [0, 0], [1, 1]]),
        torch.tensor([[0, 1], [0, 0], [1, 1]]),
        torch.tensor([[1, 0]]),
    ]
    values = [
        torch.stack([10.0 * b + torch.arange(1.0, len(m) + 1)] * 2, dim=1).double()
        for b, m in enumerate(masks)
    ]
    series = [times(0.0, 0.1, 0.2, 0.4, 0.8), times(0.3, 0.6, 0.9), times(0.5)]
    return make_series(series, values, masks, [torch.ones_like(m) for m in masks])


def test_observations_are_the_observed_times_in_order_and_the_first_one():
    batch = series_batch()
    seen = observations(batch)
    assert seen.lengths.tolist() == [3, 2, 1]
    assert seen.times.tolist() == [[0.0, 0.1, 0.8], [0.3, 0.9, 0.9], [0.5] * 3]
    assert seen.mask.tolist() == [
        [[0, 0], [1, 0], [1, 1]],
        [[0, 1], [1, 1], [0, 0]],
        [[1, 0], [0, 0], [0, 0]],
    ]
    # What is only to be predicted is not seen.
    assert seen.values.tolist() == [
        [[0, 0], [2, 0], [5, 5]],
        [[0, 11], [13, 13], [0, 0]],
        [[21, 0], [0, 0], [0, 0]],
    ]
    assert batch.mask[0, 0].tolist() == [0, 0]


def make_encoder(kind):
    if kind == "rnn":
        return RNNEncoder(2, 3, 4).double()
    return ODERNNEncoder(MLPField(3, (8,), time_dependent=False), 2, 3, 4, 6).double()


encoders = pytest.mark.parametrize("kind", ["rnn", "ode_rnn"])


@encoders
def test_a_posterior_depends_on_its_sample_alone(kind):
    encoder, seen = make_encoder(kind), observations(series_batch())
    posterior = encoder(seen)
    assert posterior.mean.shape == posterior.std.shape == (3, 4)
    assert bool((posterior.std > 0).all())
    for b, n in enumerate(seen.lengths):
        part = Observations(*(x[b : b + 1, :n] for x in seen[:3]), seen.lengths[b : b + 1])
        alone = encoder(part)
        found = Posterior(*(x[b : b + 1] for x in posterior))
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-13)


@encoders
def test_a_deviation_of_exactly_zero_has_a_finite_divergence(kind):
    encoder = make_encoder(kind)
    for parameter in encoder.to_latent[-1].parameters():
        nn.init.zeros_(parameter)
    posterior = encoder(observations(series_batch()))
    standard_normal_kl(*posterior).sum().backward()
    assert bool((posterior.std > 0).all())
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters())


@encoders
@pytest.mark.parametrize("what", ["value", "mask", "time", "nothing observed"])
def test_a_posterior_hears_of_values_masks_and_times_alone(kind, what):
    encoder, seen = make_encoder(kind), observations(series_batch())
    posterior = encoder(seen)
    if what == "value":
        seen.values[0, 2, 0] += 1.0
    elif what == "mask":
        seen.mask[0, 2, 0] = 0.0
    elif what == "time":
        seen.times[0, 1] += 0.2
    else:
        seen.values.add_(7.0 * (1.0 - seen.mask))
    changed = encoder(seen)
    heard = not torch.allclose(changed.mean[0], posterior.mean[0], rtol=1e-6)
    assert heard == (what != "nothing observed")
    torch.testing.assert_close(changed.mean[1:], posterior.mean[1:])


def test_a_gru_reads_backwards_with_the_time_since_the_observation_before():
    encoder, seen = make_encoder("rnn"), observations(series_batch())
    state = torch.zeros(1, 1, 3, dtype=torch.float64)
    for k, gap in ((2, 0.0), (1, 0.7), (0, 0.1)):
        x = torch.cat([seen.values[0, k], seen.mask[0, k], times(gap)])
        _, state = encoder.gru(x[None, None], state)
    mean, std = encoder.to_latent(state[0]).chunk(2, dim=1)
    posterior = encoder(seen)
    torch.testing.assert_close(posterior.mean[:1], mean)
    torch.testing.assert_close(posterior.std[:1], std.abs())


def test_an_ode_rnn_unrolls_back_to_the_first_time():
    encoder, seen = make_encoder("ode_rnn"), observations(series_batch())
    posterior = encoder.rnn(*seen).final
    mean, std = encoder.to_latent(torch.cat(posterior, dim=1)).chunk(2, dim=1)
    found = encoder(seen)
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.std, std.abs())
    plan = encoder.rnn.plan(seen.times, seen.lengths)
    assert bool((plan.dt <= 0).all())
    torch.testing.assert_close(plan.dt.sum(1), -times(0.8, 0.6, 0.0))
