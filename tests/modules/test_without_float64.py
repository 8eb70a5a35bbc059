"""On a device without float64 the library makes no float64 tensor."""

from contextlib import ExitStack

import pytest
import torch
from pytorch_lightning import Callback

from steer_lightning import SteerCallback, steer
from steer_lightning.nn import CNF, ConcatSquashField, LatentDecoder, MLPField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.no_float64 import NoFloat64Error, forbid_float64
from tests.modules.cases import CASES, steps


class OnDevice(Callback):
    """Forbids float64 in batches of training and validation."""

    def __init__(self, device):
        self.device = device
        self.batches = 0
        self.watching = ExitStack()

    def start(self, trainer, pl_module, batch, *_):
        self.device.put(list(pl_module.parameters()), list(pl_module.buffers()), batch)
        self.watching.enter_context(self.device.watch())

    def end(self, *_):
        self.watching.close()
        self.batches += 1

    def on_exception(self, *_):
        self.watching.close()

    on_train_batch_start = on_validation_batch_start = start
    on_train_batch_end = on_validation_batch_end = end


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_no_case_needs_float64(name, scope, monkeypatch):
    """See :class:`tests.helpers.no_float64.Device` for what it proves, and what not.

    From the batch's start to its end, the optimiser's step, metrics and logs included.
    """
    watch = OnDevice(forbid_float64(monkeypatch))
    callbacks = [watch, SteerCallback(b=0.2, scope=scope)]
    steps(*callbacks, num_sanity_val_steps=0).fit(CASES[name].build(), CASES[name].data())
    assert watch.batches >= 2


SOLVERS = [
    *(
        TorchdiffeqSolver(m, 1e-3, 1e-3)
        for m in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
    ),
    *(TorchdiffeqSolver(m, options={"step_size": 0.25}) for m in ("rk4", "heun3")),
    TorchdiffeqSolver(gradient="adjoint"),
    TorchdiffeqSolver(gradient="adjoint", seminorm=True),
    TorchdiffeqSolver("midpoint", gradient="adjoint"),
    TorchdiffeqSolver("scipy_solver", gradient="adjoint", options={"solver": "RK45"}),
    FixedGridSolver(),
    FixedGridSolver("heun", checkpoint=True),
]


def take_step(model, *batch, b=0.2, scope="batch", **arguments):
    with steer(model, b=b, step=3, seed=1, scope=scope):
        y = model(*batch, **arguments)
        y.square().mean().backward()
    return y


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_no_solver_needs_float64(solver, scope, monkeypatch):
    device = forbid_float64(monkeypatch)
    model, y0, t = ODEBlock(MLPField(2, (4,)), solver), torch.ones(3, 2), torch.tensor([0, 0.4, 1])
    device.put(y0, t, list(model.parameters()))
    with device.watch():
        take_step(model, y0, scope=scope)
        take_step(model, y0, t, scope=scope)
        if not isinstance(solver, FixedGridSolver):
            take_step(model, y0, t_start=t, scope=scope)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("solver", [None, FixedGridSolver("rk4", 8)], ids=["default", "grid"])
def test_no_decoder_needs_float64(solver, scope, monkeypatch):
    device = forbid_float64(monkeypatch)
    model = LatentDecoder(MLPField(4, (8,), time_dependent=False), solver)
    times = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.3, 0.3]])
    batch = torch.ones(5, 2, 4), times, torch.tensor([3, 2])
    device.put(*batch, list(model.parameters()))
    with device.watch():
        take_step(model, *batch, b="auto", scope=scope)


def test_no_learned_end_time_needs_float64(monkeypatch):
    device = forbid_float64(monkeypatch)
    solver = TorchdiffeqSolver(gradient="adjoint")
    flow = CNF(ConcatSquashField(2, (4,)), (2,), solver, learn_t1=True)
    x = torch.ones(3, 2)
    device.put(x, list(flow.parameters()))
    with device.watch(), steer(flow, b=0.2, step=0, seed=0):
        flow.log_prob(x).sum().backward()
    assert flow.horizon.learned_t1.grad.dtype == torch.float32


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
def test_adams_is_refused_where_there_is_no_float64(method, monkeypatch):
    forbid_float64(monkeypatch)
    solver = TorchdiffeqSolver(method, options={"step_size": 0.25})
    with pytest.raises(TypeError, match=f"with float64 for method='{method}', .* on cpu. Use 'rk"):
        solver.solve(lambda t, y: -y, torch.ones(3, 2), torch.tensor([0.0, 1.0]))


def test_the_watch_sees_float64(monkeypatch):
    device = forbid_float64(monkeypatch)
    monkeypatch.undo()  # the library takes the CPU for a CPU again
    y0, field = torch.ones(3, 2), MLPField(2, (4,))
    device.put(y0, list(field.parameters()))
    for model in (ODEBlock(field), ODEBlock(field, TorchdiffeqSolver(gradient="adjoint"))):
        with (
            device.watch(),
            pytest.raises(NoFloat64Error, match=r"has no torch\.float64"),
        ):
            model(y0)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with device.watch(), pytest.raises(NoFloat64Error, match="mixes one in"):
        y0[:2, 0] * t
    with device.watch(), pytest.raises(NoFloat64Error, match=r"has no torch\.float64"):
        torch.zeros(2, dtype=torch.float64, device=y0.device)
    for move in (lambda: y0.double(), lambda: t.to(y0.device)):
        with device.watch(), pytest.raises(NoFloat64Error, match=r"has no torch\.float64"):
            move()
    with device.watch():  # what is legitimate: bookkeeping on the CPU, numbers, casts on the way
        assert (y0[:2, 0].cpu().double() * t).dtype == torch.float64
        assert (y0 * t[0]).dtype == torch.float32
        assert t.to(y0).dtype == torch.float32
