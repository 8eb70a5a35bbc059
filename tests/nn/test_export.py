"""Trained blocks on a fixed grid leave Python: ``torch.export`` and ONNX."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from steer_lightning import steer
from steer_lightning.nn import (
    CNF,
    Augmented,
    ConcatField,
    ConcatSquashField,
    ConvField,
    MLPField,
    ODEBlock,
)
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)

GRID = FixedGridSolver("midpoint", n_steps=2)


def classifier():
    block = ODEBlock(MLPField(2, (8,)), AdaptiveSolver(), eval_solver=GRID)
    return nn.Sequential(block, nn.Linear(2, 3))


class Density(nn.Module):
    """The log-density of a flow."""

    def __init__(self):
        super().__init__()
        self.flow = CNF(ConcatSquashField(2, (8,)), event_shape=(2,), solver=GRID)

    def forward(self, x):
        return self.flow.log_prob(x)


# Models with the shape of a sample.
MODELS = {
    "classifier": (classifier, (2,)),
    "backwards, no time": (
        lambda: ODEBlock(
            MLPField(2, (8,), time_dependent=False), FixedGridSolver("heun"), t_span=(1.0, -1.0)
        ),
        (2,),
    ),
    "augmented": (lambda: Augmented(ODEBlock(MLPField(4, (8,)), GRID), 2), (2,)),
    "time concatenated": (lambda: ODEBlock(ConcatField(2, (8,)), GRID), (2,)),
    "convolutions": (lambda: ODEBlock(ConvField(3, 4), GRID), (3, 6, 6)),
    "density": (Density, (2,)),
    "flow": (lambda: CNF(ConcatSquashField(2, (8,)), event_shape=(2,), solver=GRID), (2,)),
}


def trained(name):
    """A model after a step under STEER, in eval mode; an example; batches of other sizes."""
    make, shape = MODELS[name]
    model = make()
    with steer(model, b=0.5, step=0, seed=0):
        first_of(model(torch.randn(4, *shape))).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.eval(), torch.randn(4, *shape), [torch.randn(n, *shape) for n in (1, 4, 7)]


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


batches_of_any_size = ({0: torch.export.Dim("batch")},)


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_program_gives_what_the_model_gives(name):
    model, example, batches = trained(name)
    program = torch.export.export(model, (example,), dynamic_shapes=batches_of_any_size).module()
    for x in batches:
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "convolutions", "flow"])
def test_onnx_gives_what_the_model_gives(name, tmp_path):
    model, example, batches = trained(name)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (example,), path, dynamo=True, dynamic_shapes=batches_of_any_size, verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    for x in batches:
        expected = first_of(model(x)).detach().numpy()
        np.testing.assert_allclose(
            session.run(None, {given.name: x.numpy()})[0], expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "solver", [AdaptiveSolver(), RosenbrockSolver(), TorchdiffeqSolver("rk4")], ids=repr
)
def test_other_solvers_are_refused_with_the_remedy(solver):
    block, x = ODEBlock(MLPField(2, (8,)), solver).eval(), torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"a FixedGridSolver in .* `block.eval_solver = Fixed"):
        torch.export.export(block, (x,))
    block.eval_solver = GRID
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))
