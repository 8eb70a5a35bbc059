"""Which horizons of a model are moved."""

import pytest
import torch
from torch import nn

from steer_lightning import SteerCallback, steer
from steer_lightning.nn import LatentODE, MLPField, ODEBlock
from steer_lightning.steering.targets import find_horizons

ENCODER, DECODER = "encoder.rnn.horizon", "decoder.horizon"


@pytest.fixture
def latent_ode():
    return LatentODE(1, 2, 3, "ode_rnn", 4, (4,), (4,))


def test_all_horizons_or_those_of_a_part(latent_ode):
    assert sorted(find_horizons(latent_ode)) == [DECODER, ENCODER]
    for part in ("encoder", "encoder.rnn", ENCODER):
        assert list(find_horizons(latent_ode, [part])) == [ENCODER]
    assert sorted(find_horizons(latent_ode, ["decoder", "encoder"])) == [DECODER, ENCODER]


@pytest.mark.parametrize("part", ["encode", "readout", "encoder.rn", "rnn"])
def test_a_part_without_a_horizon_raises(latent_ode, part):
    message = rf"Expected `horizons` to be one of \['.*horizon'\], but got '{part}'"
    with pytest.raises(ValueError, match=message):
        find_horizons(latent_ode, [part])


def test_one_part_alone_is_moved_as_it_is_when_all_are():
    model = nn.Sequential(*(ODEBlock(MLPField(2, (4,))) for _ in range(2)))
    with steer(model, b=0.5, step=3, seed=1) as both:
        both = dict(both)
    with steer(model, b=0.5, step=3, seed=1, horizons=["1"]) as one:
        assert dict(one) == {"steer/1.horizon/end_time": both["steer/1.horizon/end_time"]}
        assert model[0].horizon.end_time + 0.0 == model[0].horizon.in_force()["end_time"]


def test_two_parts_may_have_half_widths_of_their_own():
    model = nn.Sequential(*(ODEBlock(MLPField(2, (4,))) for _ in range(2)))
    y0 = torch.ones(1, 2)
    plain = model(y0)
    with steer(model, b=0.0, step=0, horizons=["0"]), steer(model, b=0.5, step=0, horizons=["1"]):
        assert not torch.equal(model(y0), plain)
        with (
            pytest.raises(ValueError, match=r"one owner for the horizon '0\.horizon'"),
            steer(model, b=0.1, step=0),
        ):
            pass
    assert torch.equal(model(y0), plain)


def test_state_keys_tell_parts_apart():
    assert SteerCallback(0.1, horizons=["a"]).state_key != SteerCallback(0.1).state_key
    assert (
        SteerCallback(0.1, horizons=["a"]).state_key == SteerCallback(9, horizons=["a"]).state_key
    )
