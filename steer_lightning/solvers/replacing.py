"""Other solvers in a model for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steer_lightning.solvers.adaptive import AdaptiveSolver
from steer_lightning.solvers.base import Solver
from steer_lightning.solvers.fixed_grid import FixedGridSolver
from steer_lightning.solvers.torchdiffeq import TorchdiffeqSolver


@contextmanager
def replaced_solvers(model: nn.Module, replace: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
    """Replace the solvers that a model's modules hold as attributes, and put them back.

    Args:
        model: Any model.
        replace: From a solver to what takes its place; the solver itself to leave it.

    Yields:
        What was replaced, by ``<path of the module>.<attribute>``.

    Example:
        >>> from steer_lightning.nn import MLPField, ODEBlock
        >>> model = ODEBlock(MLPField(2, (8,)))
        >>> with replaced_solvers(model, lambda solver: FixedGridSolver()):
        ...     model.solver
        FixedGridSolver(method='rk4', n_steps=4)
        >>> model.solver
        AdaptiveSolver(method='dopri5', rtol=1e-05, atol=1e-05)
    """
    found = []
    for path, module, name, solver in _solvers(model):
        other = replace(solver)
        if other is not solver:
            found.append((f"{path}.{name}".lstrip("."), module, name, solver, other))
    try:
        for _, module, name, _, other in found:
            setattr(module, name, other)
        yield {path: solver for path, _, _, solver, _ in found}
    finally:
        for _, module, name, solver, _ in found:
            setattr(module, name, solver)


@contextmanager
def wrapped_solves(
    model: nn.Module, wrap: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Wrap the method ``solve`` of every solver that a model's modules hold, and unwrap it.

    The solvers stay the same objects, for code that asks what they are.

    Args:
        model: Any model.
        wrap: From a solver and its method ``solve`` to what is called in its place.
    """
    solvers = {id(solver): solver for _, _, _, solver in _solvers(model)}.values()
    own = [(vars(solver), vars(solver).get("solve")) for solver in solvers]
    try:
        for solver in solvers:
            vars(solver)["solve"] = wrap(solver, solver.solve)
        yield
    finally:
        for attributes, before in own:
            attributes.pop("solve", None)
            if before is not None:
                attributes["solve"] = before


def _solvers(model: nn.Module) -> list[tuple[str, nn.Module, str, Any]]:
    """Every attribute of a module that is a solver: path and module, name and solver."""
    return [
        (path, module, name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Solver)
    ]


def on_fixed_grid(n_steps: int) -> Callable[[Any], Any]:
    """For :func:`replaced_solvers`: rk4 in place of what can fail, with the gradient's memory.

    Args:
        n_steps: Steps in each interval of times.

    Example:
        >>> on_fixed_grid(8)(TorchdiffeqSolver())
        FixedGridSolver(method='rk4', n_steps=8)
    """

    def replace(solver: Any) -> Any:
        if isinstance(solver, AdaptiveSolver):
            return FixedGridSolver("rk4", n_steps, checkpoint=solver.checkpoint)
        if isinstance(solver, TorchdiffeqSolver):
            # Who solves by an adjoint has not the memory for all steps.
            return FixedGridSolver("rk4", n_steps, checkpoint=solver.gradient == "adjoint")
        return solver

    return replace
