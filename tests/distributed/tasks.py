"""The tasks with data of their own, in float64, to be run on one rank and on several."""

from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from datamodules.base import TensorData, TensorDataModule
from datamodules.series import SeriesData
from datamodules.stiff import StiffODEDataModule
from steer_lightning import SteerCallback
from steer_lightning.modules.stochastic import StochasticTaskModule
from steer_lightning.nn import LatentDecoder
from steer_lightning.nn.series import make_series
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from steer_lightning.solvers.base import Solver
from steer_lightning.utils.seeding import stream
from tests.helpers.models import lively, tiny_trainer
from tests.modules.cases import CASES

N = 13  # 7 and 6 samples for two ranks: four batches of two and three of them
HALF = 4
SERIES = ("latent ode", "ode rnn")

# What is built otherwise than in CASES: every weight has to have a gradient here, too.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CASES},
    "latent ode that classifies": ("latent ode", {"likelihood_weight": 0.0}),
    "ode rnn that classifies": ("ode rnn", {"likelihood_weight": 0.0}),
    # The second half of its samples has one time each: nothing is solved there.
    "latent ode of lone times": ("latent ode", {}),
    "ode rnn of lone times": ("ode rnn", {}),
}
MODES = [
    (variant, gradient)
    for variant, (name, _) in sorted(VARIANTS.items())
    for gradient in ("autograd", "adjoint")
    if gradient == "autograd" or name not in SERIES  # which have no adjoint
]


@contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@float64()
def build(variant: str, gradient: str = "autograd") -> Any:
    """A task in float64 whose steps do not depend on what else is in the batch."""
    name, changes = VARIANTS[variant]
    module = lively(CASES[name].build(**changes))
    for part in module.modules():
        for attribute, solver in list(vars(part).items()):
            if not isinstance(solver, Solver):
                continue
            if isinstance(part, LatentDecoder):
                setattr(part, attribute, FixedGridSolver("rk4", 8))
            else:
                fixed = TorchdiffeqSolver("rk4", gradient=gradient, options={"step_size": 0.25})
                setattr(part, attribute, fixed)
    return module


def samples(variant: str, n: int) -> Any:
    """``n`` samples of a task's data as a batch, with weights and labels that differ."""
    name, _ = VARIANTS[variant]
    g = torch.Generator().manual_seed(3)

    def rand(*shape):
        return torch.rand(shape, generator=g, dtype=torch.float64)

    if name == "cnf":
        return 2.0 * rand(n, 2) - 1.0, 0.1 + rand(n)
    if name == "classifier":
        return rand(n, 1, 4, 4), torch.arange(n) % 3
    if name == "image flow":
        return ((256 * rand(n, 1, 4, 4)).floor(),)
    if name == "regression":
        points = 2.0 * rand(n, 2) - 1.0
        return points, points.norm(dim=1, keepdim=True)
    if name == "stiff":
        data = StiffODEDataModule(r=5.0, interval=0.5, n_starts=n, dtype="float64")
        return data.build("train").tensors
    # One span for all, so that a fixed grid is the same whatever is in the batch.
    times = [torch.cat([torch.zeros(1), rand(2 + i % 3).sort()[0], torch.ones(1)]).double()
             for i in range(n)]  # fmt: skip
    if variant.endswith("lone times"):
        times[n // 2 :] = [t[:1] for t in times[n // 2 :]]
    values = [torch.sin((3 + 2 * (i % 2)) * t + 0.1 * i)[:, None] for i, t in enumerate(times)]
    labels = [torch.tensor(i % 2) for i in range(n)]
    if name == "ode rnn":  # of some times: the first half of the samples has more
        labels = [torch.arange(len(t)) % 2 for t in times]
        for i in range(n // 2, n):
            labels[i][1:] = -1
    return make_series(times, values, [torch.ones_like(x) for x in values], labels=labels)


def rows(batch: Any, chosen: slice) -> Any:
    parts = [part[chosen] for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


class Samples(TensorDataModule):
    """The samples of a task as every split; the trajectory of the stiff one."""

    def __init__(self, variant: str, n: int = N) -> None:
        super().__init__(batch_size=4, eval_batch_size=2)
        self.variant = variant
        self.n = n

    def build(self, split):
        if self.variant == "stiff" and split != "train":
            return StiffODEDataModule(r=5.0, n_test=5, dtype="float64").build(split)
        batch = samples(self.variant, self.n)
        return SeriesData(batch) if hasattr(batch, "lengths") else TensorData(batch)


def make_trainer(folder, *callbacks: Callback, n_ranks: int = 1, **settings: Any) -> Trainer:
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    ranks = {"devices": n_ranks, "strategy": "auto" if n_ranks == 1 else strategy}
    own = {"precision": "64-true", "default_root_dir": folder, **ranks, **settings}
    return tiny_trainer(*callbacks, **own)


class SameNoise(TorchFunctionMode):
    """Every sample gets the same noise, whatever batch of whatever rank it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator] = []

    def stream(self, *_: object) -> torch.Generator:
        self.generators.append(stream("cpu", "one"))
        return self.generators[-1]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(kwargs.get("generator") is known for known in self.generators):
            return func(*args, **kwargs)
        if func is torch.Tensor.normal_:
            shape = list(args[0].shape)
        else:
            ends, shape = (args[:2], args[2]) if func is torch.randint else ((), args)
            shape = list(shape[0] if isinstance(shape[0], tuple | list) else shape)
        axis = 1 if len(shape) == 3 else 0  # latent draws are (S, B, L), all else is (B, ...)
        one = [1 if i == axis else size for i, size in enumerate(shape)]
        if func is torch.Tensor.normal_:
            return args[0].copy_(args[0].new_empty(one).normal_(**kwargs))
        return func(*ends, one, **kwargs).expand(shape).clone()


@contextmanager
def same_noise():
    mode, own = SameNoise(), StochasticTaskModule.noise_stream
    StochasticTaskModule.noise_stream = lambda self, *key: mode.stream(*key)
    try:
        with mode:
            yield
    finally:
        StochasticTaskModule.noise_stream = own


class KeepsGradients(Callback):
    """The gradients of the first step, after reduction over the ranks."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.gradients:
            self.gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in pl_module.named_parameters()
                if p.requires_grad
            }


def gradients(
    folder, variant, gradient, chosen: slice, n_ranks: int = 1, n_accumulated: int = 1
) -> dict[str, Any]:
    """Train two steps on some of ``2 * HALF`` samples; what the first step's gradients were."""
    keep = KeepsGradients()
    batch = rows(samples(variant, 2 * HALF), chosen)
    steered = () if VARIANTS[variant][0] in SERIES else (SteerCallback(b=0.2, seed=0),)
    trainer = make_trainer(
        folder, keep, *steered, n_ranks=n_ranks, max_steps=2, use_distributed_sampler=False,
        accumulate_grad_batches=n_accumulated,
    )  # fmt: skip
    module = build(variant, gradient)
    module._noise_seed = 0 if isinstance(module, StochasticTaskModule) else None
    trainer.fit(module, DataLoader([batch] * 2 * n_accumulated, batch_size=None))
    assert trainer.global_step == 2  # the second one fails if DDP waited for a gradient in vain
    return keep.gradients


@float64()  # metrics round what they are given to this
def evaluation(folder, variant, n_ranks: int = 1) -> tuple[dict[str, float], Any]:
    """Metrics of validation and test, and predictions."""
    module, data = build(variant), Samples(variant)
    trainer = make_trainer(folder, n_ranks=n_ranks)
    (val,) = trainer.validate(module, data, verbose=False)
    (test,) = trainer.test(module, data, verbose=False)
    return {**val, **test}, trainer.predict(module, data)


def normed_classifier() -> nn.Module:
    """A classifier with buffers, which DDP sends to all ranks."""
    module = build("classifier")
    module.stem = nn.BatchNorm2d(1).double()
    return module
