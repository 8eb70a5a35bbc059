import torch

from steer_lightning.horizon.time_warp import TimeWarp
from tests.helpers.problems import times


def test_the_map_is_affine_and_extends_past_both_ends():
    warp = TimeWarp(anchor=1.0, start=3.0, rate=torch.tensor(1.5, dtype=torch.float64))
    s = times(0.0, 1.0, 2.0, 4.0)
    assert torch.equal(warp.actual(s), times(1.5, 3.0, 4.5, 7.5))


def test_a_rate_and_a_start_for_each_sample():
    warp = TimeWarp(anchor=1.0, start=times(0.0, 10.0), rate=times(0.5, 2.0))
    assert torch.equal(warp.actual(torch.tensor(2.0)), times(0.5, 12.0))


def test_the_derivative_is_scaled_along_the_batch():
    warp = TimeWarp(0.0, 0.0, times(0.5, 2.0))
    for shape in [(2,), (2, 3), (2, 3, 4, 4)]:
        scaled = warp.scale(torch.ones(shape, dtype=torch.float64))
        assert scaled.shape == shape
        assert bool((scaled[0] == 0.5).all())
        assert bool((scaled[1] == 2.0).all())


def test_each_part_of_a_tuple_is_scaled():
    warp = TimeWarp(0.0, 0.0, times(0.5, 2.0))
    image, density = warp.scale((torch.ones(2, 3), torch.ones(2)))
    assert torch.equal(image[:, 0], torch.tensor([0.5, 2.0], dtype=image.dtype))
    assert torch.equal(density, torch.tensor([0.5, 2.0], dtype=density.dtype))


def test_one_rate_keeps_the_states_dtype():
    warp = TimeWarp(0.0, 0.0, torch.tensor(0.5))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert warp.scale(torch.ones(2, 3, dtype=dtype)).dtype == dtype
