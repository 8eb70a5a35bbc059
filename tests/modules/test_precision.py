"""Mixed precision lowers networks alone, and a state in half precision is refused."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning import SteerCallback
from steer_lightning.modules import RegressionModule
from steer_lightning.nn import ODERNN, LatentODE, MLPField, ODEBlock
from steer_lightning.solvers import TorchdiffeqSolver
from steer_lightning.solvers.wrapping import wrapped_solves
from tests.helpers.faults import scaled
from tests.helpers.watching import Log, weights
from tests.modules.cases import CASES, steps

LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRODUCTS = {F.linear, F.conv2d, torch.addmm, torch.mm, torch.matmul, torch.bmm}


@pytest.fixture(params=sorted(LOW))
def precision(request):
    return request.param


def mixed(precision):
    """Settings of a Trainer; a gradient scaler of its own, as the default one is for GPUs."""
    return scaled()[0] if precision == "16-mixed" else {"precision": precision}


def parts(y):
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_of_the_gradient_is_not_that_of_a_scaled_loss(fused):
    optimizer = partial(torch.optim.Adam, fused=fused)
    norms = []
    for settings in ({}, scaled()[0]):
        module = CASES["regression"].build(optimizer=optimizer)
        trainer = steps(max_steps=1, **settings)
        trainer.fit(module, CASES["regression"].data())
        norms.append(float(trainer.callback_metrics["train/grad_norm"]))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


class Watched(nn.Module):
    """A vector field that notes what it is given."""

    def __init__(self, field, watch):
        super().__init__()
        self.field, self.watch = field, watch
        self.controlled_parts = getattr(field, "controlled_parts", None)
        self.autonomous = getattr(field, "autonomous", False)

    def forward(self, t, y):
        self.watch.enter(None, (t, y))
        dy = self.field(t, y)
        self.watch.leave()
        return dy


class Watch(TorchFunctionMode):
    """Dtypes of states, of times, and of the products inside vector fields."""

    def __init__(self):
        super().__init__()
        self.states, self.times, self.products = set(), set(), set()
        self.inside = False

    def enter(self, module, arguments):
        t, y = arguments
        self.times.add(t.dtype)
        self.states.update(part.dtype for part in parts(y))
        self.inside = True

    def leave(self, *_):
        self.inside = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.inside and func in PRODUCTS:
            self.products.add(out.dtype)
        return out

    def solves(self, model):
        """Watch all solves of a model, and the fields that an ODE-RNN evaluates by itself."""
        for rnn in model.modules():
            if isinstance(rnn, ODERNN):
                rnn.vector_field.register_forward_pre_hook(self.enter)
                rnn.vector_field.register_forward_hook(self.leave)

        def watched(solve, field, y0, t_eval, **settings):
            solution = solve(Watched(field, self), y0, t_eval, **settings)
            self.states.update(part.dtype for part in parts(getattr(solution, "ys", y0)))
            return solution

        return wrapped_solves(model, watched)


def test_networks_alone_compute_in_low_precision(case, precision):
    module, log, watch = case.build(), Log(), Watch()
    before = weights(module)
    trainer = steps(SteerCallback(b=0.2), log, limit_val_batches=0, **mixed(precision))
    with watch.solves(module), watch:
        trainer.fit(module, case.data())
    assert watch.products == {LOW[precision]}
    assert watch.states == {torch.float32}
    assert watch.times == {torch.float32}
    assert len(log.losses) == 2
    assert torch.tensor(log.losses).isfinite().all()
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert weights(module).isfinite().all()
    assert not torch.equal(weights(module), before)


def test_a_stem_may_compute_in_low_precision(precision):
    block = ODEBlock(MLPField(4, (8,)), TorchdiffeqSolver(rtol=1e-2, atol=1e-2))
    module = RegressionModule(block, nn.Linear(4, 1), stem=nn.Linear(2, 4))
    data = DataLoader(TensorDataset(torch.randn(4, 2), torch.randn(4, 1)), batch_size=4)
    log = Log()
    steps(log, limit_val_batches=0, **mixed(precision)).fit(module, data)
    assert torch.tensor(log.losses).isfinite().all()


def test_without_autocast_the_watch_sees_float32():
    case, watch = CASES["latent ode"], Watch()
    module = case.build()
    with watch.solves(module), watch:
        steps(limit_val_batches=0).fit(module, case.data())
    assert watch.products == {torch.float32}


@pytest.mark.parametrize("name", ["cnf", "image flow", "stiff"])
def test_densities_and_rollouts_are_evaluated_in_full_precision(name, precision):
    case = CASES[name]
    module, data = case.build(), case.data()
    found, expected = (
        steps(**settings).validate(module, data, verbose=False)
        for settings in (mixed(precision), {})
    )
    assert found == expected


@pytest.mark.parametrize("encoder", ["rnn", "ode_rnn"])
def test_a_latent_state_has_the_dtype_of_the_values(encoder):
    data = CASES["latent ode"].data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        forecast = LatentODE(1, 3, 4, encoder, 5, (6,), (6,), 0.2)(batch)
    posterior, along, whole = forecast.posterior, forecast.along, forecast.whole
    assert {part.dtype for part in (*posterior, along, whole)} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("16-true", "float16"), ("bf16-true", "bfloat16")]
)
def test_weights_in_half_precision_are_refused(case, precision, dtype):
    module = case.build()
    trainer = steps(precision=precision)
    with pytest.raises(TypeError, match=f"float32 or float64, but got torch.{dtype}: .*autocast"):
        trainer.fit(module, case.data())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_ode_rnn_refuses_half_precision(dtype):
    rnn = ODERNN(MLPField(4, (8,), time_dependent=False), n_features=2, n_states=4).to(dtype)
    values = torch.ones(1, 3, 2, dtype=dtype)
    with pytest.raises(TypeError, match=f"but got {dtype}: solvers add small steps"):
        rnn(torch.tensor([[0.0, 0.3, 1.0]]), values, values, torch.tensor([3]))


def test_an_adjoint_goes_back_in_full_precision():
    """Lightning calls backward outside of autocast."""
    model, watch = ODEBlock(MLPField(2, (4,)), TorchdiffeqSolver(gradient="adjoint")), Watch()
    outputs = []
    model.vector_field.network[0].register_forward_hook(
        lambda *args: outputs.append(args[2].dtype)
    )
    with watch.solves(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.ones(3, 2)).square().mean()
        n_forward = len(outputs)
        loss.backward()
    assert set(outputs[:n_forward]) == {torch.bfloat16}
    assert set(outputs[n_forward:]) == {torch.float32}
    assert (watch.states, watch.times) == ({torch.float32}, {torch.float32})
    assert all(p.grad.isfinite().all() for p in model.parameters())
