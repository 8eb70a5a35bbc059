"""Whole networks for irregular series: what they read, where they predict, what STEER moves."""

import pytest
import torch
from torch import nn

from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.nn import (
    LatentODE,
    MLPField,
    ODERNNEncoder,
    ODERNNForecaster,
    Posterior,
    RNNEncoder,
)
from steer_lightning.nn.series import make_series
from steer_lightning.utils.seeding import stream
from tests.helpers.models import lively, seeded
from tests.helpers.problems import LinearField, times


def series():
    """Samples of 4 and 2 times; the second and third time of the first are never asked for."""
    masks = [torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]]), torch.ones(2, 2)]
    targets = [torch.tensor([[0, 0], [0, 0], [0, 0], [1, 1]]), torch.ones(2, 2)]
    values = [torch.arange(1.0, 9.0).view(4, 2).double(), -torch.ones(2, 2).double()]
    grids = [times(0.0, 0.2, 0.7, 1.0), times(0.1, 0.6)]
    labels = [torch.tensor([-1, -1, 1, -1]), torch.tensor([0, -1])]
    return make_series(grids, values, masks, targets, labels)


def make_latent_ode(encoder="ode_rnn", **arguments):
    def build():
        return LatentODE(2, 3, 4, encoder, 5, (6,), (6,), 0.1, **arguments)

    return lively(seeded(build).double())


class Fixed(nn.Module):
    """A posterior that is the same for all."""

    def forward(self, seen):
        mean = times(1.0, -1.0).expand(len(seen.times), -1)
        return Posterior(mean, torch.full_like(mean, 0.5))


def make_linear():
    """A latent ODE whose states are known."""
    latent_ode = make_latent_ode(vector_field=LinearField(), encoder=Fixed())
    latent_ode.readout = nn.Linear(2, 2).double()
    return latent_ode


def make_ode_rnn():
    return lively(seeded(lambda: ODERNNForecaster(2, 3, 5, (6,), (6,), 0.1)).double())


def draws(latent_ode, batch, n=2):
    return latent_ode(batch, n, stream("cpu", 0))


def test_a_latent_ode_predicts_where_it_is_asked():
    batch = series()
    forecast = draws(make_latent_ode(), batch)
    # The first time, the labelled one and the target.
    assert forecast.batch.times.tolist() == [[0.0, 0.7, 1.0], [0.1, 0.6, 0.6]]
    assert forecast.batch.labels.tolist() == [[-1, 1, -1], [0, -1, -1]]
    assert forecast.mean.shape == (2, 2, 3, 2)
    assert forecast.along.shape == (2, 2, 3, 3)
    assert forecast.whole.shape == (2, 2, 3)
    assert torch.equal(forecast.along[:, :, 0], forecast.whole)


def test_values_are_read_off_states_that_follow_the_field():
    latent_ode = make_linear()
    forecast = draws(latent_ode, series())
    noise = torch.randn(2, 2, 2, generator=stream("cpu", 0), dtype=torch.float64)
    z0 = times(1.0, -1.0) + 0.5 * noise
    torch.testing.assert_close(forecast.whole, z0)
    elapsed = forecast.batch.times - forecast.batch.times[:, :1]
    flows = torch.linalg.matrix_exp(elapsed[..., None, None] * latent_ode.decoder.vector_field.a)
    exact = torch.einsum("btij,sbj->sbti", flows, z0)
    torch.testing.assert_close(forecast.along, exact, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(forecast.mean, latent_ode.readout(forecast.along))


@pytest.mark.parametrize("make", [make_latent_ode, lambda: make_latent_ode("rnn")])
def test_a_latent_ode_reads_what_is_observed_and_nothing_else(make):
    latent_ode, batch = make(), series()
    expected = draws(latent_ode, batch).mean
    hidden = (batch.mask == 0) & (batch.target_mask > 0)
    changed = batch._replace(values=batch.values + 7.0 * hidden)
    assert torch.equal(draws(latent_ode, changed).mean, expected)
    changed = batch._replace(values=batch.values + batch.mask)
    assert not torch.allclose(draws(latent_ode, changed).mean, expected)


def test_encoders_by_name():
    assert isinstance(make_latent_ode("ode_rnn").encoder, ODERNNEncoder)
    assert isinstance(make_latent_ode("rnn").encoder, RNNEncoder)
    with pytest.raises(ValueError, match=r"`encoder` to be one of \['ode_rnn', 'rnn'\], but got"):
        LatentODE(2, encoder="ode")
    with pytest.raises(ValueError, match="ignores time"):
        LatentODE(2, vector_field=MLPField(10))


def test_an_ode_rnn_predicts_from_what_came_before():
    network, batch = make_ode_rnn(), series()
    forecast = network(batch)
    assert forecast.batch.times.tolist() == [[0.0, 0.7, 1.0], [0.1, 0.6, 0.6]]
    assert forecast.posterior is None
    assert forecast.mean.shape == (1, 2, 3, 2)
    later = batch.values.clone()
    later[:, -2:] += 1.0  # the observation at 0.7 of the first, the last of the second
    changed = network(batch._replace(values=later))
    assert torch.equal(changed.mean[:, 0, :2], forecast.mean[:, 0, :2])
    assert not torch.allclose(changed.mean[:, 0, 2], forecast.mean[:, 0, 2])
    assert not torch.allclose(changed.along[:, 0, 1], forecast.along[:, 0, 1])
    assert not torch.allclose(changed.whole[:, 0], forecast.whole[:, 0])
    # The first time is no target.
    assert forecast.batch.target_mask.tolist() == [
        [[0, 0], [0, 0], [1, 1]],
        [[0, 0], [1, 1], [0, 0]],
    ]
    assert batch.target_mask[1, 0].tolist() == [1, 1]  # the batch given is as it was


@pytest.mark.parametrize("make", [make_latent_ode, lambda: make_latent_ode("rnn"), make_ode_rnn])
def test_predictions_at_times_are_the_forecast_there(make):
    network, batch = make(), series()
    batch = batch._replace(target_mask=batch.valid[..., None].expand_as(batch.mask).double())
    if isinstance(network, ODERNNForecaster):
        network.rnn.max_step = 1.0  # more times would mean shorter steps
        batch = batch._replace(mask=batch.target_mask)
        expected, found = network(batch).mean, network.predict_at(batch, batch.times)
    else:
        expected = draws(network, batch).mean
        found = network.predict_at(batch, batch.times, 2, stream("cpu", 0))
    for b, n in enumerate(batch.lengths):
        torch.testing.assert_close(found[:, b, :n], expected[:, b, :n], rtol=1e-3, atol=1e-3)
    grid = torch.linspace(0.1, 5.0, 9, dtype=torch.float64).expand(2, -1)  # past the end too
    assert network.predict_at(batch, grid).shape == (1, 2, 9, 2)
    assert network.predict_at(batch, grid).isfinite().all()


def test_an_ode_rnn_predicts_no_matter_how_far_ahead_one_asks_too():
    network, batch = make_ode_rnn(), series()
    near = batch.times[:, -1:] + 0.1
    far = torch.cat([near, near + 100.0], dim=1)
    expected, found = (network.predict_at(batch, t)[:, :, 0] for t in (near, far))
    torch.testing.assert_close(found, expected)
    for wrong in (far.flip(1), batch.times[:, :1] - 0.1, near * torch.nan):
        with pytest.raises(ValueError, match="`times` that increase, none before the first"):
            network.predict_at(batch, wrong)


def test_the_decoder_is_stretched_over_the_times_that_are_asked_for_alone():
    latent_ode, batch = make_linear(), series()
    latent_ode.decoder.horizon.perturb(EndTimeDraw("auto", key=2))
    forecast = draws(latent_ode, batch)
    rates = latent_ode.decoder.horizon.rates(forecast.batch.times, forecast.batch.lengths)
    assert rates.shape == (2, 2)
    end = (rates[0] * torch.tensor([0.7, 0.3])).sum()  # not 0.2, 0.5 and 0.3
    exact = latent_ode.decoder.vector_field.exact(forecast.whole[:, 0], 0.0, end)
    torch.testing.assert_close(forecast.along[:, 0, 2], exact, rtol=5e-3, atol=5e-3)
