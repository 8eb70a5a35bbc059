"""STEER for a torchdyn NeuralODE in a LightningModule: tell two half circles apart.

``python examples/torchdyn_node.py`` takes some seconds on a CPU. Name ``vf``, the module in which
torchdyn wraps the field, and the span, which its own solvers do not tell.
"""

import math

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchdyn.core import NeuralODE

from steer_lightning import NFEMonitor, SteerCallback


class Learner(pl.LightningModule):
    """A Neural ODE with a linear head, written with torchdyn alone."""

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.node = NeuralODE(net, sensitivity="autograd", solver="dopri5", return_t_eval=False)
        self.head, self.losses = nn.Linear(2, 2), []

    def training_step(self, batch, batch_idx):
        x, label = batch
        logits = self.head(self.node(x, torch.linspace(0.0, 1.0, 2))[-1])
        loss = nn.functional.cross_entropy(logits, label)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def main(steps=200):
    """Train with STEER; the losses."""
    pl.seed_everything(0)
    label = torch.randint(2, (1024,))
    angle = math.pi * (torch.rand(1024) + label)
    x = torch.stack([angle.cos() + label - 0.5, angle.sin() + 0.5 * label - 0.25], dim=1)
    x += 0.1 * torch.randn_like(x)
    data = DataLoader(TensorDataset(x, label), batch_size=128, shuffle=True)
    callbacks = [
        SteerCallback(b=0.5, vector_fields=["node.vf"], t0=0.0, t1=1.0),
        NFEMonitor(vector_fields=["node.vf"]),
    ]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", callbacks=callbacks, **quiet)
    model = Learner()
    trainer.fit(model, data)
    print(f"{int(trainer.callback_metrics['train/nfe_forward'])} evaluations in the last batch")
    return model.losses


if __name__ == "__main__":
    losses = main()
    print(f"cross-entropy {losses[0]:.3f} -> {losses[-1]:.4f} nats")
