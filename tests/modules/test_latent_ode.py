"""Latent ODEs and ODE-RNNs under SteerCallback, with noise of their own, from end to end."""

import pytest
import torch
from pytorch_lightning import Callback

from datamodules import PeriodicDataModule
from steer_lightning.callbacks import SteerCallback
from steer_lightning.horizon import GridHorizon
from steer_lightning.modules import LatentODEModule, ODERNNModule
from steer_lightning.nn import LatentODE, ODERNNForecaster
from tests.helpers.models import seeded, tiny_trainer
from tests.helpers.watching import weights


def latent_ode(encoder="ode_rnn"):
    network = seeded(lambda: LatentODE(1, 2, 3, encoder, 4, (4,), (4,), 0.2))
    return LatentODEModule(network, noise_std=0.5)


def ode_rnn():
    return ODERNNModule(seeded(lambda: ODERNNForecaster(1, 3, 4, (4,), (4,), 0.2)), noise_std=0.5)


def waves(shared_times=True):
    data = PeriodicDataModule(
        30, n_points=8, n_observed=4, val_size=4, batch_size=10, shared_times=shared_times
    )
    data.setup("fit")
    return data


def fit(module, *callbacks, data=None, **arguments):
    trainer = tiny_trainer(*callbacks, **{"max_epochs": 2, **arguments})
    trainer.fit(module, waves() if data is None else data)
    return trainer


class Watch(Callback):
    """Collects the mean stretch of every horizon: in training, and in validation."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.train.append(self.stretches(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.val.append(self.stretches(pl_module))

    def stretches(self, module):
        horizons = (m for m in module.modules() if isinstance(m, GridHorizon))
        return [horizon.in_force()["stretch"] for horizon in horizons]


@pytest.mark.parametrize("shared_times", [True, False])
@pytest.mark.parametrize(("make", "n"), [(latent_ode, 2), (lambda: latent_ode("rnn"), 1),
                                         (ode_rnn, 1)])  # fmt: skip
def test_steer_moves_encoder_and_decoder_in_training_alone(make, n, shared_times):
    watch = Watch()
    # The callback's reset at batch end comes after the watch.
    fit(make(), watch, SteerCallback(b="auto", seed=0), data=waves(shared_times))
    assert len(watch.train) == 4
    for stretches in zip(*watch.train, strict=True):
        assert len(set(stretches)) == 4
        assert 1.0 not in stretches
        assert all(0.0 < stretch < 2.0 for stretch in stretches)
    assert len(watch.train[0]) == n
    assert len({*watch.train[0]}) == n  # independent draws
    assert watch.val
    assert all(stretches == [1.0] * n for stretches in watch.val)


@pytest.mark.parametrize("make", [latent_ode, ode_rnn])
def test_evaluation_and_a_half_width_of_zero_are_those_without_the_callback(make):
    plain, zero, moved, loaded = make(), make(), make(), make()
    fit(plain)
    fit(zero, SteerCallback(b=0.0, seed=0))
    trainer = fit(moved, SteerCallback(b="auto", seed=0))
    assert torch.equal(weights(plain), weights(zero))
    assert not torch.equal(weights(plain), weights(moved))
    loaded.load_state_dict(moved.state_dict())
    loaded._noise_seed = moved._noise_seed
    steered = trainer.validate(moved, waves(), verbose=False)
    assert tiny_trainer().validate(loaded, waves(), verbose=False) == steered


def test_the_bound_of_a_batch_averages_before_the_logarithm():
    batch = next(iter(waves().train_dataloader()))
    bounds = {}
    for bound_of in ("series", "batch"):
        module = LatentODEModule(latent_ode().network, noise_std=0.5, bound_of=bound_of)
        forecast = module.forecast(batch, torch.Generator().manual_seed(0))
        bounds[bound_of], terms = module.likelihood(forecast)
    log_p = module.log_likelihood(forecast)
    kl = terms["kl_weight"] * terms["kl"]
    torch.testing.assert_close(bounds["series"], (log_p - kl).exp().mean(0).log())
    expected = log_p.mean(1).exp().mean().log() - kl.mean()
    torch.testing.assert_close(bounds["batch"], expected[None])
    assert bounds["batch"] < bounds["series"].mean()  # a mean within the logarithm is convex
    with pytest.raises(ValueError, match="bound_of"):
        LatentODEModule(latent_ode().network, bound_of="draw")


def test_the_global_random_stream_is_not_touched():
    module = latent_ode()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module.evaluate(next(iter(waves().train_dataloader())))
    assert torch.equal(torch.get_rng_state(), before)
