"""Training step of the 2-D flow by solvers side by side: time, evaluations and accuracy.

Same weights, batch, method and tolerances, exact trace in all. Where nothing else is said, the
field computes its divergence itself; "double backward" is how the trace is commonly written. Loss
and gradient are compared with a float64 solve by torchdiffeq at tolerance 1e-11. Other libraries
are left out if they are not installed.

``python -m benchmarks.flow_step [--eager] [--compiled-step]``; a compiled adaptive step takes a
minute or two to compile.
"""

import copy
import sys
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from benchmarks.timing import machine, measure
from benchmarks.toy_flow import (
    TRAINING_STEPS,
    Integrate,
    PlainFlow,
    contender,
    make_batches,
    make_field,
    through_torchdiffeq,
)
from steer_lightning.nn import CNF, ConcatSquashField
from steer_lightning.solvers import AdaptiveSolver, TorchdiffeqSolver

TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}


def others() -> dict[str, Integrate]:
    """Other libraries, those that are installed."""
    found: dict[str, Integrate] = {}
    with suppress(ImportError):
        from zuko.utils import odeint as zuko_odeint

        def through_zuko(field: nn.Module, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            phi = field.parameters()
            return zuko_odeint(
                lambda t, *state: field(t, state), state, 1.0, 0.0, phi, **TOLERANCES
            )

        found["zuko"] = through_zuko
    with suppress(ImportError):
        from torchdyn.numerics import odeint as torchdyn_odeint  # needs torchcde as well

        def through_torchdyn(
            field: nn.Module, state: tuple[Tensor, Tensor]
        ) -> tuple[Tensor, Tensor]:
            def joined(t: Tensor, y: Tensor) -> Tensor:
                dy, divergence = field(t, (y[:, :2], y[:, 2]))
                return torch.cat([dy, divergence[:, None]], 1)

            y0, times = torch.cat([state[0], state[1][:, None]], 1), torch.tensor([1.0, 0.0])
            _, ys = torchdyn_odeint(joined, y0, times, "dopri5", **TOLERANCES)
            return ys[-1, :, :2], ys[-1, :, 2]

        found["torchdyn"] = through_torchdyn
    return found


def make_flows(
    field: ConcatSquashField, compiled: bool = False, compiled_step: bool = False
) -> dict[str, CNF | PlainFlow]:
    """The flow in every way, the common one first."""
    own = partial(CNF, field, (2,))
    flows: dict[str, CNF | PlainFlow] = {
        "torchdiffeq adjoint, double backward": PlainFlow(field, double_backward=True),
        "torchdiffeq adjoint": PlainFlow(field),
        "torchdiffeq": PlainFlow(field, through_torchdiffeq(odeint)),
    }
    flows |= {name: PlainFlow(field, integrate) for name, integrate in others().items()}
    flows |= {
        "`CNF(TorchdiffeqSolver())`": own(TorchdiffeqSolver()),
        "`CNF`": own(),
        '`CNF`, `first_step="previous"`': own(AdaptiveSolver(first_step="previous")),
        "`CNF`, tsit5": own(AdaptiveSolver("tsit5")),
        "`CNF`, `checkpoint=True`": own(AdaptiveSolver(checkpoint=True)),
    }
    if compiled:
        flows["`CNF(compile=True)`"] = own(compile=True)
    if compiled_step:
        flows["`CNF`, `AdaptiveSolver(compile=True)`"] = own(AdaptiveSolver(compile=True))
    return flows


def run(
    compiled: bool = True,
    compiled_step: bool = False,
    training_steps: int = TRAINING_STEPS,
    repeats: int = 15,
) -> str:
    """Measure, and tell as Markdown tables."""
    (x,) = make_batches(1)
    tables = []
    for n in (0, training_steps):
        field = make_field(n)
        flows = make_flows(field, compiled, compiled_step)
        exact = PlainFlow(copy.deepcopy(field).double(), through_torchdiffeq(odeint, 1e-11))
        contenders = {name: contender(flow, x) for name, flow in flows.items()}
        title = f"after {n} steps" if n else "weights as initialised"
        tables.append(measure(title, contenders, contender(exact, x.double()), repeats, warmup=3))
    return "\n\n".join(tables)


if __name__ == "__main__":
    tables = run("--eager" not in sys.argv, "--compiled-step" in sys.argv)
    print(f"{machine()}\n\nbatch 512, dopri5 at 1e-5\n\n{tables}")
