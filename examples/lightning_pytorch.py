"""STEER and a penalty with ``lightning.pytorch``, on this library's flow: fit a ring.

``python examples/lightning_pytorch.py`` takes half a minute on a CPU. The callbacks serve the
Trainer of either package, ``lightning`` or ``pytorch_lightning``.
"""

import math

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from steer_lightning import NFEMonitor, PenaltyCallback, SteerCallback
from steer_lightning.nn import CNF, ConcatSquashField
from steer_lightning.penalties import Acceleration


class Density(pl.LightningModule):
    """A continuous normalizing flow, trained by maximum likelihood."""

    def __init__(self):
        super().__init__()
        self.flow = CNF(ConcatSquashField(2, (32, 32)), event_shape=(2,))
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = -self.flow.log_prob(batch).mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(steps=150):
    """Train with STEER; the losses, in nats, without the penalty."""
    pl.seed_everything(0)
    angle = 2 * math.pi * torch.rand(2048)
    ring = 2.0 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * torch.randn(2048, 2)
    callbacks = [SteerCallback(b=0.5), PenaltyCallback(Acceleration(0.01)), NFEMonitor()]
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    model = Density()
    trainer.fit(model, DataLoader(ring, batch_size=128, shuffle=True))
    return model.losses


if __name__ == "__main__":
    losses = main()
    print(f"negative log-likelihood {losses[0]:.3f} -> {losses[-1]:.3f} nats")
