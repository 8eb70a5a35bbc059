import torch

from steer_lightning.utils.seeding import default_seed, stream_key


def test_stream_keys_are_stable_and_apart():
    assert stream_key("end_time", 0, 1, "flow") == 2242756729433398454
    keys = {
        stream_key(seed, step, path) for seed in range(3) for step in range(3) for path in "ab"
    }
    assert len(keys) == 18
    assert all(0 <= key < 2**63 for key in keys)
    assert stream_key(1, 11) != stream_key(11, 1)
    assert stream_key("a", "b") != stream_key("ab")


def test_the_default_is_lightnings_global_seed_or_torchs_initial_one(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert default_seed() == 17
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        torch.rand(3)
        assert default_seed() == 11
