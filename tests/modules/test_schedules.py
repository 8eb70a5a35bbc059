import pytest
import torch

from steer_lightning.modules.schedules import FlooredExponentialLR


def make(lr=1e-2, **arguments):
    optimizer = torch.optim.Adamax([torch.zeros(1, requires_grad=True)], lr=lr)
    return optimizer, FlooredExponentialLR(optimizer, **arguments)


def rates(optimizer, schedule, n):
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_decays_to_the_floor_and_stays_below_it():
    found = rates(*make(gamma=0.5, min_lr=2e-3), n=5)
    assert found == pytest.approx([1e-2, 5e-3, 2.5e-3, 2e-3, 2e-3])
    assert rates(*make(lr=1e-4, gamma=0.5, min_lr=1e-3), n=3) == [1e-4] * 3


@pytest.mark.parametrize("arguments", [{"gamma": 0.0}, {"gamma": 1.1}, {"gamma": 1, "min_lr": -1}])
def test_arguments_out_of_range_raise(arguments):
    with pytest.raises(ValueError, match=r"Expected `gamma` in \(0, 1\] and `min_lr` >= 0"):
        make(**arguments)
