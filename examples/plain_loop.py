"""STEER in plain PyTorch, with a half-width that decays to none, and a resume.

``python examples/plain_loop.py`` takes some seconds on a CPU. A draw depends on ``seed``, ``step``
and the block alone: a loop that goes on from a checkpoint needs no random state of STEER.
"""

import torch

from steer_lightning import steer
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver
from steer_lightning.utils.schedule import Schedule


def main(steps=200):
    """Train in two halves, the second from what the first one saved; the losses."""
    saved = train(0, steps // 2, steps, None)
    return saved["losses"] + train(steps // 2, steps, steps, saved)["losses"]


def train(start, stop, steps, saved):
    """Steps ``start`` to ``stop`` of ``steps`` in all; what the next ones need."""
    torch.manual_seed(0)
    block = ODEBlock(MLPField(2, (32,)), AdaptiveSolver("tsit5", rtol=1e-4, atol=1e-4))
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
    if saved is not None:
        block.load_state_dict(saved["block"])
        optimizer.load_state_dict(saved["optimizer"])
    half_width = Schedule(start=0.5, end=0.0, length=steps, shape="cosine")
    losses = []
    for step in range(start, stop):
        y0 = torch.randn(128, 2, generator=torch.Generator().manual_seed(step))
        with steer(block, b=half_width, step=step, seed=0):
            loss = (block(y0).norm(dim=1) - 1.0).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"block": block.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}


if __name__ == "__main__":
    losses = main()
    print(f"mean squared distance to the circle {losses[0]:.3f} -> {losses[-1]:.5f}")
