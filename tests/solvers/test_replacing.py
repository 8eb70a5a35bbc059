import pytest
import torch
from torch import nn

from steer_lightning.nn import LatentODE, MLPField, ODEBlock
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    TorchdiffeqSolver,
)
from steer_lightning.solvers.replacing import on_fixed_grid, replaced_solvers, wrapped_solves
from tests.helpers.models import ClockField, StubSolver


def test_what_can_fail_goes_on_a_fixed_grid_and_comes_back():
    adjoint, own = TorchdiffeqSolver(gradient="adjoint"), FixedGridSolver("euler", 3)
    model = nn.ModuleDict(
        {
            "a": ODEBlock(ClockField(), adjoint, eval_solver=TorchdiffeqSolver()),
            "b": ODEBlock(ClockField(), own),
            "c": LatentODE(n_features=1),
        }
    )
    dense = model["c"].decoder.solver
    with replaced_solvers(model, on_fixed_grid(5)) as replaced:
        grid = model["a"].solver
        assert (grid.method, grid.n_steps, grid.checkpoint) == ("rk4", 5, True)
        assert not model["a"].eval_solver.checkpoint
        assert model["b"].solver is own
        assert isinstance(model["c"].decoder.solver, FixedGridSolver)
        assert list(replaced) == ["a.solver", "a.eval_solver", "c.decoder.solver"]
    assert model["a"].solver is adjoint
    assert model["c"].decoder.solver is dense
    assert isinstance(dense, AdaptiveSolver)


def test_a_model_that_is_a_block_itself_is_named_by_the_attribute():
    with replaced_solvers(ODEBlock(ClockField()), on_fixed_grid(1)) as replaced:
        assert list(replaced) == ["solver"]


def test_solvers_come_back_after_an_exception():
    block = ODEBlock(ClockField())
    own = block.solver
    with pytest.raises(KeyError), replaced_solvers(block, on_fixed_grid(1)):
        raise KeyError
    assert block.solver is own


def test_a_wrapped_solver_is_still_itself():
    solver, calls = StubSolver(), []
    model = nn.ModuleList([ODEBlock(MLPField(2, (4,)), solver) for _ in range(2)])

    def wrap(_, solve):
        return lambda *args, **kwargs: (calls.append(args[2]), solve(*args, **kwargs))[1]

    with wrapped_solves(model, wrap):
        assert model[0].solver is model[1].solver is solver
        model[1](model[0](torch.zeros(1, 2)))
    assert len(calls) == len(solver.t_evals) == 2  # once each: the shared solver is wrapped once
    assert "solve" not in vars(solver)


def test_a_solve_of_the_solver_s_own_comes_back():
    solver = StubSolver()
    solver.solve = own = solver.solve
    with wrapped_solves(ODEBlock(ClockField(), solver), lambda solver, solve: None):
        assert solver.solve is None
    assert solver.solve is own
