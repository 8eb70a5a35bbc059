"""STEER and a penalty in a loop of Lightning's Fabric: carry points to a circle.

``python examples/fabric_loop.py`` takes some seconds on a CPU. Give ``steer`` and ``penalize`` the
module as it was built, not Fabric's wrapper.
"""

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from steer_lightning import penalize, penalty, steer
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.penalties import KineticEnergy


def main(steps=200):
    """Train with STEER; the losses, without the penalty."""
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0)
    block = ODEBlock(MLPField(2, (32,)))
    model, optimizer = fabric.setup(block, torch.optim.Adam(block.parameters(), lr=1e-2))
    loader = fabric.setup_dataloaders(DataLoader(torch.randn(128 * steps, 2), batch_size=128))
    losses = []
    for step, y0 in enumerate(loader):
        with (
            steer(block, b=0.5, step=step, seed=0),
            penalize(block, [KineticEnergy(0.01)], step=step, seed=0),
        ):
            loss = (model(y0).norm(dim=1) - 1.0).square().mean()
            fabric.backward(loss + penalty(block))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"mean squared distance to the circle {losses[0]:.3f} -> {losses[-1]:.5f}")
