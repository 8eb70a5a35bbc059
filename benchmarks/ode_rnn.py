"""Training steps of latent ODEs with this library's encoder, and with one in plain code.

The library's encoder unrolls along each sample's own observations; the plain one, as in published
code, takes all samples over the union of the batch's times. These are two discretisations of the
same ODE: the union cuts Euler steps at other samples' times too, measures its longest step by the
range of the batch, and starts a sample before its own last observation. First the encoder alone
and the loss of a whole training step are compared on real PhysioNet records, then the training
step of the periodic toy, whose plain contenders have torchdiffeq's decoder too. If everything is
observed, all agree up to the tolerance of the solvers.

``python -m benchmarks.ode_rnn``
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from benchmarks.configs import DATA_DIR, build
from benchmarks.timing import Contender, machine, measure
from steer_lightning.modules import LatentODEModule
from steer_lightning.nn import (
    LatentDecoder,
    Observations,
    ODERNNEncoder,
    Posterior,
    PosteriorGRU,
    observations,
)
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.solvers import AdaptiveSolver, SolveStats

TOY_STEPS = 200


class UnionSeries(NamedTuple):
    """All times, shape ``(U,)``; values and masks, zero if not observed, ``(B, U, 2 D)``."""

    times: Tensor
    inputs: Tensor


def union_of(seen: Observations) -> UnionSeries:
    """Spread samples over the union of their times."""
    times, place = torch.unique(seen.times, return_inverse=True)
    inputs = torch.cat([seen.values * seen.mask, seen.mask], dim=2)
    empty = inputs.new_zeros(len(inputs), len(times), inputs.shape[2])
    # A sum, because padding repeats a sample's last time, with zeros.
    return UnionSeries(times, empty.scatter_add(1, place[..., None].expand_as(inputs), inputs))


def euler_pieces(times: Tensor, max_step: float) -> list[int]:
    """Euler steps in each gap, none longer than ``max_step`` of the time range."""
    t = times.double()
    longest = max_step * (t[-1] - t[0])
    return [max(1, math.ceil(gap - 1e-6)) for gap in (t.diff() / longest).tolist()]


def masked_gru(gru: PosteriorGRU, m: Tensor, std: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The published update, written out, of the samples that observe something."""
    joint = torch.cat([m, std, x], -1)
    keep, reset = torch.sigmoid(gru.update_gate(joint)), torch.sigmoid(gru.reset_gate(joint))
    new_m, new_std = gru.new_state(torch.cat([m * reset, std * reset, x], -1)).chunk(2, -1)
    new_m, new_std = (1 - keep) * new_m + keep * m, (1 - keep) * new_std.abs() + keep * std
    observes = (x[:, x.shape[1] // 2 :].sum(-1, keepdim=True) > 0).to(x)
    return observes * new_m + (1 - observes) * m, observes * new_std + (1 - observes) * std


class UnionUnroll(nn.Module):
    """An ODE-RNN encoder that unrolls back over the union of all times, as published code does."""

    def __init__(self, encoder: ODERNNEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, seen: Observations) -> Posterior:
        """Posterior over the latent state at the first time of the union."""
        times, inputs = union_of(seen)
        rnn = self.encoder.rnn
        pieces = euler_pieces(times, rnn.max_step)
        steps = (-times.diff() / torch.tensor(pieces).to(times)).tolist()
        m = std = inputs.new_zeros(len(inputs), rnn.n_states)
        m, std = masked_gru(rnn.gru, m, std, inputs[:, -1])
        for i in reversed(range(len(pieces))):
            for j in range(pieces[i]):
                rnn.stats.count("nfe")
                m = m + steps[i] * rnn.vector_field(times[i + 1] + j * steps[i], m)
            m, std = masked_gru(rnn.gru, m, std, inputs[:, i])
        latent, std = self.encoder.to_latent(torch.cat([m, std], 1)).chunk(2, 1)
        return Posterior(latent, std.abs())


class PlainDecoder(nn.Module):
    """torchdiffeq at times that all samples share, in place of the library's decoder."""

    def __init__(self, decoder: LatentDecoder, integrate: Callable[..., Tensor]) -> None:
        super().__init__()
        solver = cast(AdaptiveSolver, decoder.solver)
        self.vector_field = decoder.vector_field
        self.settings = {"rtol": solver.rtol, "atol": solver.atol, "method": "dopri5"}
        self.integrate = integrate
        self.stats = SolveStats()
        self.vector_field.register_forward_pre_hook(lambda *_: self.stats.count("nfe"))

    def forward(self, z0: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """States ``(S, B, T, L)``."""
        z = self.integrate(self.vector_field, z0, times[0].to(z0), **self.settings)
        return z.permute(1, 2, 0, 3)


def plain(
    module: LatentODEModule, integrate: Callable[..., Tensor] | None = None
) -> LatentODEModule:
    """A copy with the plain encoder and, if ``integrate`` is given, the plain decoder."""
    module = copy.deepcopy(module)
    network: Any = module.network
    network.encoder = UnionUnroll(network.encoder)
    if integrate is not None:
        network.decoder = PlainDecoder(network.decoder, integrate)
    return module


def encoding(module: LatentODEModule, batch: SeriesBatch) -> Contender:
    """The encoder alone, with a sum in place of a loss."""
    encoder = module.network.encoder
    return Contender(encoder, lambda: torch.cat(encoder(observations(batch))).sum())


def training(module: LatentODEModule, batch: SeriesBatch) -> Contender:
    """The whole training step."""
    return Contender(module, lambda: module.evaluate(batch)["loss"])


def run_physionet(folder: Path = DATA_DIR / "physionet2012", repeats: int = 5) -> str:
    """Measure on a batch of PhysioNet, and tell as Markdown tables."""
    if not folder.exists():
        return f"PhysioNet left out: {folder} does not exist; give STEER_DATA_DIR."
    module, data = build("latent_ode/physionet", f"--data.init_args.data_dir={folder}")
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    return "\n\n".join(
        measure(
            f"PhysioNet, {part}, initial weights",
            {
                "union unroll, plain": contend(plain(module), batch),
                "own unroll of each sample": contend(module, batch),
            },
            repeats=repeats,
        )
        for part, contend in (("encoder", encoding), ("training step", training))
    )


def compare_toy(name: str, own: LatentODEModule, batch: SeriesBatch, repeats: int) -> str:
    """Table of the training step, of samples that share the times asked for."""
    contenders = {
        "torchdiffeq, autograd": training(plain(own, odeint), batch),
        "torchdiffeq, adjoint": training(plain(own, odeint_adjoint), batch),
        "this library": training(own, batch),
    }
    return measure(f"toy, {name}", contenders, repeats=repeats)


def run_toy(repeats: int = 9, training_steps: int = TOY_STEPS) -> str:
    """Measure the training step of the periodic toy, and tell as Markdown tables."""
    module, data = build("latent_ode/periodic")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.kl_wait_epochs -= 80  # as if in epoch 80: the divergence counts half
    initial = compare_toy("initial weights", module, batch, repeats)
    optimizer = torch.optim.Adamax(module.parameters(), 0.01)
    for _ in range(training_steps):
        training(module, batch).step()
        optimizer.step()
    trained = compare_toy(f"after {training_steps} steps", module, batch, repeats)
    return f"{initial}\n\n{trained}"


def run() -> str:
    """Measure, and tell as Markdown tables."""
    return f"{run_physionet()}\n\n{run_toy()}"


if __name__ == "__main__":
    print(f"{machine()}\n\n{run()}")
