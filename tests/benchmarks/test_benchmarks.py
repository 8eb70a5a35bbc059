import math
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import benchmarks
from benchmarks import (
    classifier_step,
    cnf_step,
    first_step,
    flow_step,
    recompilations,
    stiff,
    toy_flow,
    work_precision,
)
from benchmarks.classifier_step import Architecture
from benchmarks.timing import kept_gigabytes
from benchmarks.work_precision import Point
from steer_lightning.modules import ClassifierModule
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import TorchdiffeqSolver


@pytest.mark.parametrize("name", [module.name for module in iter_modules(benchmarks.__path__)])
def test_every_module_imports(name):
    assert import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("std", [0.01, 0.1])
def test_flow_agrees_with_plain_torchdiffeq_code(std):
    flow = cnf_step.make_flow(size=8, hidden=(4,))
    torch.manual_seed(0)
    for block in flow.blocks:
        nn.init.normal_(block.vector_field.layers[-1].weight, std=std)
    differences = cnf_step.compare(flow, cnf_step.make_batch(2, size=8))
    assert len(differences) == 2
    for loss, gradient in differences.values():
        assert 0.0 <= loss < 1e-4
        assert 0.0 <= gradient < 1e-4


@pytest.mark.parametrize("architecture", [Architecture(4), Architecture(3, 2)])
def test_classifier_agrees_with_plain_torchdiffeq_code(architecture):
    x = classifier_step.make_images(4, size=6).double()
    steps = classifier_step.make_steps(architecture, x)
    apart = classifier_step.differences(
        steps, classifier_step.plain_step(architecture, x, tol=1e-9)
    )
    loss, gradient = apart["`ODEBlock`"]
    assert loss < 1e-3
    assert gradient < 1.5 * apart["torchdiffeq, autograd"][1]  # kinks make both coarse
    plain, own = (steps[name].stats for name in ("torchdiffeq, autograd", "`ODEBlock`"))
    assert 0 < own.nfe_forward <= plain.nfe_forward
    kept = {name: kept_gigabytes(step.loss) for name, step in steps.items()}
    assert 0 < kept["`ODEBlock`"] < kept["torchdiffeq, autograd"]


def rows(markdown):
    """Cells of a Markdown table, by the first of each row."""
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    return {first: rest for first, *rest in cells[2:]}


def test_every_contender_solves_the_same_flow():
    flows = flow_step.make_flows(toy_flow.make_field())
    assert {"torchdiffeq", "`CNF`", "`CNF`, tsit5"} <= flows.keys()
    (x,) = toy_flow.make_batches(1)
    for loss, gradient in flow_step.errors(flows, x[:16]).values():
        assert loss < 1e-4
        assert gradient < 0.05
    assert all(flow.stats.nfe_forward > 0 for flow in flows.values())


def test_flow_step_tells_a_table_for_each_set_of_weights(monkeypatch):
    monkeypatch.setattr(toy_flow, "BATCH_SIZE", 8)
    two = dict(list(flow_step.make_flows(toy_flow.make_field()).items())[::5])
    monkeypatch.setattr(flow_step, "make_flows", lambda *_: two)
    initial, trained = flow_step.run(compiled=False, training_steps=1, repeats=1).split("\n\n")
    assert initial.startswith("| weights as initialised |")
    assert trained.startswith("| after 1 steps |")
    assert rows(trained)["torchdiffeq adjoint, double backward"][1] == "1.00"


def test_training_moves_the_field_and_leaves_the_initial_one(monkeypatch):
    monkeypatch.setattr(toy_flow, "BATCH_SIZE", 8)
    before, after = (toy_flow.make_field(n).state_dict() for n in (0, 1))
    assert all(bool((before[name] != after[name]).any()) for name in before)


def test_relative_work_is_read_at_equal_error():
    base = [Point(10, 1e-3), Point(1000, 1e-7), Point(100, 1e-5)]
    half = [Point(50, 1e-5), Point(16, 1e-4), Point(3, 1.0), Point(10_000, 1e-9)]
    expected = (0.5 * 16 / 10**1.5) ** 0.5
    assert work_precision.relative_work(half, base) == pytest.approx(expected)
    assert work_precision.relative_work(base, base) == pytest.approx(1.0)
    assert math.isnan(work_precision.relative_work([Point(1, 1.0)], base))


def test_work_and_precision_of_every_solver(tmp_path):
    problems = {name: work_precision.PROBLEMS[name] for name in ("decay", "logistic")}
    measured = work_precision.curves(problems, tolerances=(1e-3, 1e-5))
    for by_solver in measured.values():
        for loose, tight in by_solver.values():
            assert loose.nfe < tight.nfe
            assert tight.error < min(1e-2, loose.error)
    told = rows(work_precision.summary(measured))
    assert list(told) == ["decay", "logistic", "geometric mean"]
    work_precision.draw(measured).savefig(tmp_path / "plot.png")


@pytest.mark.parametrize("name", work_precision.PROBLEMS)
def test_problems_are_solved_as_their_reference(name):
    problem = work_precision.PROBLEMS[name]
    (point,) = work_precision.measure(problem, work_precision.solvers()["ours, tsit5"], (1e-6,))
    assert point.error < 1e-3


def test_first_steps_of_the_flow(monkeypatch, tmp_path):
    monkeypatch.setattr(toy_flow, "BATCH_SIZE", 8)
    told, left_out = first_step.run(str(tmp_path / "absent"), training_steps=1, n=3).split("\n\n")
    assert "absent does not exist; give --data_dir or STEER_DATA_DIR" in left_out
    assert list(rows(told)) == ["2-D flow after 1 steps, b = 0", "2-D flow after 1 steps, b = 0.5"]


def test_first_steps_of_a_config(monkeypatch):
    block = ODEBlock(MLPField(4, (8,)), TorchdiffeqSolver(rtol=1e-4, atol=1e-4))
    module = ClassifierModule(block, nn.Linear(4, 2), 2, stem=nn.Flatten())
    data = pl.LightningDataModule()
    data.train_dataloader = lambda: [(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 3
    monkeypatch.setattr(first_step, "build", lambda *_: (module, data))
    without, steered = first_step.compare_config("name", "", Path(), 0.99, 1e-3, n_train=1, n=2)
    assert [without[0], steered[0]] == [
        "name after 1 steps, b = 0",
        "name after 1 steps, b = 0.99",
    ]
    auto, previous = (first_step.with_first_step(module, how) for how in ("auto", "previous"))
    assert not auto.block.solver.remembers
    assert previous.block.solver.remembers
    assert previous.block.solver.rtol == 1e-4


def test_recompilations_are_counted(monkeypatch):
    monkeypatch.setattr(toy_flow, "BATCH_SIZE", 8)
    monkeypatch.setattr(recompilations, "STEPS", 2)
    eager = toy_flow.CNF(toy_flow.make_field(), (2,))
    assert recompilations.count(eager, "batch") == (0, 0)


def test_stiff_systems_are_solved_alike_by_all():
    rows = stiff.run(tolerance=1e-5, repeats=1, t1=0.02).splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert len(cells) == 12
    for cell in cells:
        assert float(cell[7]) < 1e-3
        assert float(cell[8]) < 1e-3
        assert (int(cell[5]) > 0) == (cell[1] in ("rodas5p", "rodas4", "rosenbrock23"))
