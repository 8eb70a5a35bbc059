"""Training step of the 2-D flow against torchdiffeq's adjoint with a double-backward trace.

Same weights, batch, method and tolerances, exact trace in both. Loss and gradient are compared
with a float64 solve at tolerance 1e-10 by the plain code.
"""

from benchmarks.timing import side_by_side, table
from benchmarks.toy_flow import PlainFlow, make_batch, make_field, stepper, training_step
from steer_lightning.nn import CNF
from steer_lightning.solvers import TorchdiffeqSolver


def run() -> str:
    """Measure, and tell as a Markdown table."""
    field, x = make_field(), make_batch()
    flows: dict[str, CNF | PlainFlow] = {
        "torchdiffeq adjoint, double backward": PlainFlow(field),
        "CNF, adjoint": CNF(field, (2,), TorchdiffeqSolver(gradient="adjoint")),
        "CNF": CNF(field, (2,)),
        "CNF, compiled": CNF(field, (2,), compile=True),
    }
    seconds = side_by_side({name: stepper(flow, field, x) for name, flow in flows.items()})
    results = {name: training_step(flow, x, field.parameters()) for name, flow in flows.items()}
    exact = make_field().double()
    loss, gradient = training_step(PlainFlow(exact, 1e-10), x.double(), exact.parameters())
    slowest = seconds["torchdiffeq adjoint, double backward"]
    rows = [
        [
            name,
            f"{1e3 * seconds[name]:.1f}",
            f"{slowest / seconds[name]:.2f}",
            f"{abs(results[name][0] - loss) / abs(loss):.1e}",
            f"{(results[name][1] - gradient).norm() / gradient.norm():.1e}",
        ]
        for name in flows
    ]
    header = ["batch 512, dopri5 at 1e-5", "ms a step", "speed-up", "error of loss", "of gradient"]
    return table(header, rows)


if __name__ == "__main__":
    print(run())
