"""On a GPU everything is what it is on the CPU; what needs one to be tested."""

import copy

import pytest
import torch

from steer_lightning import PenaltyCallback, SteerCallback, steer
from steer_lightning.callbacks import NFEMonitor, TrainingClock
from steer_lightning.guard import SolverGuard
from steer_lightning.nn import CompiledField, ConvField, MLPField, ODEBlock
from steer_lightning.penalties import Acceleration, LocalError
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from tests.helpers.models import image_flow, lively, seeded
from tests.modules.cases import CASES, steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SOLVERS = [
    AdaptiveSolver(),
    AdaptiveSolver("tsit5", checkpoint=True),
    AdaptiveSolver("bosh3", first_step="previous"),
    RosenbrockSolver(rtol=1e-4, atol=1e-4),
    TorchdiffeqSolver(),
    TorchdiffeqSolver(gradient="adjoint"),
    FixedGridSolver(),
    FixedGridSolver(checkpoint=True),
]


def three_steps(block, device, scope="batch", dtype=torch.float64):
    """Solutions and gradients under three draws, the weights moved between them."""
    block = copy.deepcopy(block).to(device, dtype)
    y0 = torch.linspace(-1.0, 1.0, 8).view(4, 2).to(device, dtype)
    optimizer, found = torch.optim.SGD(block.parameters(), lr=0.1), []
    for step in range(3):
        y = y0.clone().requires_grad_()
        optimizer.zero_grad()
        with steer(block, b=0.5, step=step, seed=0, scope=scope):
            ys = block(y, torch.tensor([0.0, 0.3, 1.0]).to(y0))
        ys.square().sum().backward()
        assert ys.device.type == device
        found += [ys.detach().cpu(), y.grad.cpu(), *(p.grad.cpu() for p in block.parameters())]
        optimizer.step()
    return found


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_block_is_that_of_the_cpu(solver, scope):
    block = lively(ODEBlock(MLPField(2, (8,)), solver))
    expected, found = three_steps(block, "cpu", scope), three_steps(block, "cuda", scope)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "block",
    [
        lambda field: ODEBlock(CompiledField(field)),
        lambda field: ODEBlock(field, AdaptiveSolver("bosh3", compile=True)),
        lambda field: ODEBlock(field, FixedGridSolver(n_steps=2, compile=True)),
        lambda field: ODEBlock(field, RosenbrockSolver("rosenbrock23", compile=True)),
    ],
    ids=["field", "adaptive step", "step", "implicit step"],
)
def test_what_is_compiled_is_what_is_not(block):
    compiled = lively(block(MLPField(2, (8,))))
    plain = copy.deepcopy(compiled)
    plain.vector_field = getattr(plain.vector_field, "vector_field", plain.vector_field)
    plain.solver.compile = False
    found, expected = (three_steps(b, "cuda", dtype=torch.float32) for b in (compiled, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_compiled_image_flow_is_one_that_is_not(bf16):
    """Blocks of three shapes, two of each, over steps of training."""

    def train(compile):
        flow = lively(seeded(image_flow, (1, 8, 8)), 0.1).cuda()
        for block in flow.blocks:
            block.solver = FixedGridSolver(n_steps=2, compile=compile)
        generator, found = torch.Generator("cuda").manual_seed(0), []
        x = torch.rand(6, 1, 8, 8, generator=generator, device="cuda")
        optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
        for step in range(3):
            optimizer.zero_grad()
            with (
                steer(flow, b=0.5, step=step, seed=0),
                torch.autocast("cuda", torch.bfloat16, enabled=bf16),
            ):
                carried = flow.transport(x, generator=generator, regularize=True)
                loss = (carried.kinetic + carried.jacobian - carried.log_p / 64).mean()
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in flow.parameters())]
            optimizer.step()
        return found

    close = {"rtol": 5e-2, "atol": 5e-2} if bf16 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(train(True), train(False), **close)


# Those that draw on the device, where the stream of random numbers is another one.
NOISY = {"image flow", "latent ode"}


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_training_is_that_of_the_cpu(name, scope):
    """With all that watches a run; validation is in it."""
    weights = []
    for accelerator in ("cpu", "gpu"):
        callbacks = [SteerCallback(0.2, scope=scope, seed=0), NFEMonitor(), SolverGuard()]
        trainer = steps(*callbacks, TrainingClock(), accelerator=accelerator)
        module = CASES[name].build()
        trainer.fit(module, CASES[name].data())
        assert trainer.callback_metrics["train/nfe_forward"] > 0
        weights.append([p.detach().cpu() for p in module.parameters()])
    assert all(p.isfinite().all() for p in weights[1])
    if name not in NOISY:
        torch.testing.assert_close(*reversed(weights), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("penalty", [Acceleration(1.0), LocalError(1.0)], ids=repr)
def test_a_penalty_is_that_of_the_cpu(penalty):
    logged = []
    for accelerator in ("cpu", "gpu"):
        trainer = steps(PenaltyCallback(penalty, seed=0), accelerator=accelerator)
        trainer.fit(CASES["regression"].build(), CASES["regression"].data())
        logged.append(float(trainer.callback_metrics[f"penalty/{penalty.name}"]))
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)
    assert logged[0] > 0


def test_tf32_that_a_tolerance_cannot_hold_is_named():
    block = ODEBlock(ConvField(1, 4), AdaptiveSolver(rtol=1.25e-5)).cuda()
    with pytest.warns(UserWarning, match="its convolutions round to TF32"):
        block(torch.rand(2, 1, 4, 4, device="cuda"))
