"""ODE-RNN encoder and latent ODE against plain code: a union unroll, and torchdiffeq's decoder.

First the encoder on real PhysioNet records, same weights: along each sample's own observations,
and, as in published code, of all samples over the union of the batch's times, which is made before
the clock starts. These are two discretisations of the same ODE: the union cuts Euler steps at
other samples' times too, measures its longest step by the range of the batch, and starts a sample
before its own last observation; so posterior and loss are compared as well.

Then the whole training step of the periodic toy. The plain code unrolls over all 100 times, the
library over the 50 that a sample observes (and its first one), with its longest step measured by
their range; the plain decoder has torchdiffeq's step control and interpolant. If everything is
observed, both give the same up to the tolerance of the solvers.

``python -m benchmarks.ode_rnn [--data_dir DIR] [--ckpt PATH] [--batches N]``; ``--ckpt`` is a
checkpoint of ``configs/latent_ode/physionet.yaml``, to compare at trained weights too.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchdiffeq import odeint, odeint_adjoint

from benchmarks.configs import DATA_DIR, build
from benchmarks.timing import flat_gradient, machine, relative_difference, side_by_side, table
from steer_lightning.modules import LatentODEModule
from steer_lightning.nn import Observations, ODERNNEncoder, Posterior, PosteriorGRU, observations
from steer_lightning.nn.series import SeriesBatch

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
        return self.unroll(union_of(seen))

    def unroll(self, series: UnionSeries) -> Posterior:
        """The same, of samples that are spread over the union already."""
        rnn = self.encoder.rnn
        inputs, times = series.inputs.unbind(1), series.times.unbind()
        pieces = euler_pieces(series.times, rnn.max_step)
        steps = (-series.times.diff() / torch.tensor(pieces).to(series.times)).tolist()
        m = std = series.inputs.new_zeros(len(series.inputs), rnn.n_states)
        m, std = masked_gru(rnn.gru, m, std, inputs[-1])
        for i in reversed(range(len(pieces))):
            for j in range(pieces[i]):
                m = m + steps[i] * rnn.vector_field(times[i + 1] + j * steps[i], m)
            m, std = masked_gru(rnn.gru, m, std, inputs[i])
        latent, std = self.encoder.to_latent(torch.cat([m, std], 1)).chunk(2, 1)
        return Posterior(latent, std.abs())

    def n_steps(self, times: Tensor) -> int:
        """Euler steps along a union, and one for where it starts, as the library counts."""
        return 1 + sum(euler_pieces(times, self.encoder.rnn.max_step))


class PlainLatentODE(nn.Module):
    """Loss of a latent ODE as it is commonly written, for samples that share all times."""

    def __init__(self, module: LatentODEModule, integrate: Callable[..., Tensor] = odeint) -> None:
        super().__init__()
        self.module = module
        self.integrate = integrate
        self.encoder = UnionUnroll(cast(ODERNNEncoder, module.network.encoder))
        self.nfe = 0
        module.network.decoder.vector_field.register_forward_pre_hook(self._count)

    def forward(self, batch: SeriesBatch) -> Tensor:
        """The loss that ``LatentODEModule.evaluate`` gives, with its noise."""
        module, times = self.module, batch.times[0]
        inputs = torch.cat([batch.values * batch.mask, batch.mask], 2)
        posterior = self.encoder.unroll(UnionSeries(times, inputs))
        z0 = module.network.draw(posterior, module.n_draws, module.noise_stream("evaluate", 0))
        field, solver = module.network.decoder.vector_field, module.network.decoder.solver
        settings = {"rtol": solver.rtol, "atol": solver.atol, "method": "dopri5"}
        z = self.integrate(field, z0, times.to(z0), **settings)
        prediction = module.network.readout(z.permute(1, 2, 0, 3))
        log_p = Normal(prediction, module.noise_std).log_prob(batch.values)
        log_p = (log_p * batch.target_mask).sum(2) / batch.target_mask.sum(1)
        kl = kl_divergence(Normal(*posterior), Normal(0.0, 1.0)).mean(1)
        bound = torch.logsumexp(log_p.mean(2) - module.kl_weight * kl, 0)
        return -(bound - math.log(module.n_draws)).mean()

    def _count(self, *_: object) -> None:
        self.nfe += 1


def time_encoders(encoder: ODERNNEncoder, batches: Sequence[SeriesBatch], repeats: int) -> str:
    """Table of what the two unrolls visit, and what that takes."""
    plain, seen = UnionUnroll(encoder), [observations(batch) for batch in batches]
    unions = [union_of(series) for series in seen]

    def pass_through(unroll: Callable[[Any], Posterior], series: Sequence[Any]) -> None:
        for posterior in map(unroll, series):
            (posterior.mean.sum() + posterior.std.sum()).backward()

    own = partial(pass_through, lambda batch: encoder(observations(batch)), batches)
    encoder.rnn.stats.reset()
    own()
    n, own_steps = len(batches), encoder.rnn.stats.nfe_forward
    cases = {"union": partial(pass_through, plain.unroll, unions), "own": own}
    union, own_seconds = side_by_side(cases, repeats, warmup=1).values()
    rows = [
        ["union unroll, plain", f"{sum(len(u.times) for u in unions) / n:.0f}",
         f"{sum(plain.n_steps(u.times) for u in unions) / n:.0f}", f"{union / n:.3f}", "1.0"],
        ["own unroll of each sample", f"{sum(int(s.lengths.max()) for s in seen) / n:.0f}",
         f"{own_steps / n:.0f}", f"{own_seconds / n:.3f}", f"{union / own_seconds:.1f}"],
    ]  # fmt: skip
    header = [f"PhysioNet encoder, batch {len(batches[0].times)}", "observation times visited",
              "Euler steps", "s, forward and backward", "speed-up"]  # fmt: skip
    return table(header, rows)


@torch.no_grad()
def compare_unrolls(
    name: str, module: LatentODEModule, batches: Sequence[SeriesBatch]
) -> list[str]:
    """Row of relative differences of posterior and loss between the unrolls, same noise for z0."""
    swapped = copy.deepcopy(module)
    swapped.network.encoder = PlainLatentODE(swapped).encoder
    own, union = (
        [torch.cat(parts) for parts in zip(*map(m.network.encode, batches), strict=True)]
        for m in (module, swapped)
    )
    losses = [torch.stack([m.evaluate(b)["loss"] for b in batches]) for m in (module, swapped)]
    differences = [relative_difference(a, b) for a, b in zip(own, union, strict=True)]
    worst = float(((losses[0] - losses[1]) / losses[1]).abs().max())
    cells = [f"{value:.1e}" for value in (*differences, worst)]
    return [name, *cells, *(f"{float(loss.mean()):.5g}" for loss in losses)]


def run_physionet(
    data_dir: str | None = None, ckpt: str | None = None, n_batches: int = 3, repeats: int = 5
) -> str:
    """Measure the encoder, and tell as Markdown tables."""
    data_dir = data_dir or str(DATA_DIR / "physionet2012")
    if not Path(data_dir).exists():
        return f"PhysioNet left out: {data_dir} does not exist; give --data_dir or STEER_DATA_DIR."
    module, data = build("latent_ode/physionet", f"--data.init_args.data_dir={data_dir}")
    data.prepare_data()
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), n_batches))
    rows = [compare_unrolls("initial weights", module, batches)]
    if ckpt is not None:
        epoch = torch.load(ckpt, map_location="cpu", weights_only=True)["epoch"]
        trained = LatentODEModule.load_from_checkpoint(ckpt, "cpu", weights_only=True)
        trained.kl_wait_epochs -= epoch  # outside of a Trainer, the divergence weighs as then
        rows += [compare_unrolls(f"after epoch {epoch}", trained, batches)]
    header = [f"relative difference, {n_batches} batches", "of mean", "of std",
              "of loss (most)", "loss, own unroll", "loss, union unroll"]  # fmt: skip
    timed = time_encoders(cast(ODERNNEncoder, module.network.encoder), batches, repeats)
    return f"{timed}\n\n{table(header, rows)}"


def stepper(loss: Callable[[], Tensor], module: nn.Module, lr: float) -> Callable[[], Tensor]:
    """A training step by Adamax, which gives its loss."""
    optimizer = torch.optim.Adamax(module.parameters(), lr)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def time_toy(name: str, module: LatentODEModule, batch: SeriesBatch, repeats: int) -> str:
    """Table of the training step, at weights that stay: the learning rate is zero."""
    first, own = "torchdiffeq, autograd", "this library"
    integrators = {first: odeint, "torchdiffeq, adjoint": odeint_adjoint}
    plain = {key: PlainLatentODE(copy.deepcopy(module), how) for key, how in integrators.items()}
    modules = {key: model.module for key, model in plain.items()} | {own: module}
    steps = {key: stepper(partial(p, batch), p.module, lr=0.0) for key, p in plain.items()}
    steps[own] = stepper(lambda: module.evaluate(batch)["loss"], module, lr=0.0)
    encoder, decoder = cast(ODERNNEncoder, module.network.encoder), module.network.decoder
    encoder.rnn.stats.reset()
    decoder.stats.reset()
    values = {key: step() for key, step in steps.items()}
    work = {key: (p.encoder.n_steps(batch.times[0]), p.nfe) for key, p in plain.items()}
    work[own] = (encoder.rnn.stats.nfe_forward, decoder.stats.nfe_forward)
    gradients = {key: flat_gradient(model) for key, model in modules.items()}
    seconds = side_by_side(steps, repeats)
    rows = [
        [key, *map(str, work[key]), f"{1e3 * seconds[key]:.0f}",
         f"{seconds[first] / seconds[key]:.2f}",
         f"{relative_difference(values[key], values[first]):.1e}",
         f"{relative_difference(gradients[key], gradients[first]):.1e}"]
        for key in steps
    ]  # fmt: skip
    header = [f"toy, {name}", "Euler steps", "NFE of decoder, both passes", "ms a step",
              "speed-up", "relative difference of loss", "of gradient"]  # fmt: skip
    return table(header, rows)


def run_toy(repeats: int = 9) -> str:
    """Measure the training step of the periodic toy, and tell as Markdown tables."""
    module, data = build("latent_ode/periodic")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.kl_wait_epochs -= 80  # as if in epoch 80: the divergence counts half
    initial = time_toy("initial weights", module, batch, repeats)
    train = stepper(lambda: module.evaluate(batch)["loss"], module, lr=0.01)
    for _ in range(TOY_STEPS):
        train()
    return f"{initial}\n\n{time_toy(f'after {TOY_STEPS} steps', module, batch, repeats)}"


def run(data_dir: str | None = None, ckpt: str | None = None, batches: int = 3) -> str:
    """Measure, and tell as Markdown tables."""
    return f"{run_physionet(data_dir, ckpt, batches)}\n\n{run_toy()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", help="folder of the PhysioNet 2012 records")
    parser.add_argument("--ckpt", help="checkpoint of configs/latent_ode/physionet.yaml")
    parser.add_argument("--batches", type=int, default=3, help="PhysioNet batches to measure")
    print(f"{machine()}\n\n{run(**vars(parser.parse_args()))}")
