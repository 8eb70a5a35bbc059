import pytest
import torch

from steer_lightning.utils.seeding import default_seed, stream, stream_key


def test_stream_keys_are_stable_and_apart():
    assert stream_key("end_time", 0, 1, "flow") == 2242756729433398454
    keys = {
        stream_key(seed, step, path) for seed in range(3) for step in range(3) for path in "ab"
    }
    assert len(keys) == 18
    assert all(0 <= key < 2**63 for key in keys)
    assert stream_key(1, 11) != stream_key(11, 1)
    assert stream_key("a", "b") != stream_key("ab")


def test_a_stream_is_a_generator_seeded_by_its_key():
    before = torch.get_rng_state()
    found = torch.rand(4, generator=stream("cpu", 0, "noise"))
    expected = torch.rand(4, generator=torch.Generator().manual_seed(stream_key(0, "noise")))
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert stream(torch.device("cpu"), 1).device.type == "cpu"


@pytest.mark.parametrize("parts", [(0, "noise", 1), (1, "noise"), ("noise", 0)])
def test_streams_of_other_parts_are_others(parts):
    noise = torch.rand(4, generator=stream("cpu", 0, "noise"))
    assert not torch.equal(noise, torch.rand(4, generator=stream("cpu", *parts)))


def test_lightnings_global_seed_is_the_default(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert default_seed() == 17


def test_without_it_torchs_initial_seed_is_the_default(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        torch.rand(3)
        assert default_seed() == 11
