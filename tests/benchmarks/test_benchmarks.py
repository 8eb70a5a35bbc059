import math
from functools import partial
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
from benchmarks.timing import Contender, kept_gigabytes, measure
from benchmarks.work_precision import Point
from steer_lightning.modules import ClassifierModule
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import SolveStats, TorchdiffeqSolver, work
from steer_lightning.utils.compiling import compiled


@pytest.mark.parametrize("name", [module.name for module in iter_modules(benchmarks.__path__)])
def test_every_module_imports(name):
    assert import_module(f"benchmarks.{name}").__doc__


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(toy_flow, "BATCH_SIZE", 8)


def rows(markdown):
    """Cells of a Markdown table, by the first of each row."""
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    return {first: rest for first, *rest in cells[2:]}


def errors(markdown, row):
    """Errors of loss and gradient in a table of :func:`measure`."""
    return [float(cell) for cell in rows(markdown)[row][-2:]]


class Squared(nn.Module):
    """Loss ``w²`` of a weight, in ``n`` evaluations."""

    def __init__(self, w, n):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))
        self.again = self  # whose counts are not to be added twice
        self.stats = SolveStats()
        self.n = n

    def loss(self):
        self.stats.nfe_forward += self.n
        self.stats.nfe_backward += 1
        return (self.w**2).sum()


def squared(w, n):
    model = Squared(w, n)
    return Contender(model, model.loss)


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        (None, [["0.0e+00", "0.0e+00"], ["3.0e+00", "1.0e+00"]]),
        (squared(3.0, 1), [["8.9e-01", "6.7e-01"], ["5.6e-01", "3.3e-01"]]),
    ],
)
def test_a_table_tells_work_and_relative_errors(exact, expected):
    contenders = {"one": squared(1.0, 5), "two": squared(2.0, 7)}
    told = rows(measure("title", contenders, exact, repeats=2))
    assert [cells[2:4] for cells in told.values()] == [["5", "1"], ["7", "1"]]
    assert [cells[-2:] for cells in told.values()] == expected


def test_memory_is_what_a_forward_pass_keeps():
    x = torch.ones(1000, requires_grad=True)
    assert kept_gigabytes(lambda: (x.sin().exp() * 2).sum()) == 2 * 4000 / 1e9  # x, and the exp


def test_flow_agrees_with_plain_torchdiffeq_code():
    make = partial(cnf_step.make_flow, size=8, hidden=(4,), std=0.1)
    told = cnf_step.compare(make, cnf_step.make_batch(2, size=8), compiled=False, repeats=1)
    for row in rows(told):
        loss, gradient = errors(told, row)
        assert loss < 1e-4
        # J e has other numbers than J^T e of the first row, of equal expectation.
        assert gradient < (0.1 if row.startswith("torchdiffeq") else 1e-4)


@pytest.mark.parametrize("architecture", [(4, 0), (3, 2)])
def test_classifier_agrees_with_plain_torchdiffeq_code(architecture):
    x = classifier_step.make_images(4, size=6).double()
    told = classifier_step.compare("small", architecture, x, compiled=False, repeats=1)
    loss, gradient = errors(told, "`ODEBlock`")
    assert loss < 1e-3
    assert gradient < 1.5 * errors(told, "torchdiffeq, autograd")[1]  # kinks make both coarse
    (plain_nfe, own_nfe), (plain_kept, own_kept) = (
        [float(cells[i]) for cells in rows(told).values()] for i in (2, 4)
    )
    assert 0 < own_nfe <= plain_nfe
    assert 0 < own_kept < plain_kept


def test_every_contender_solves_the_same_flow():
    initial, trained = flow_step.run(compiled=False, training_steps=1, repeats=1).split("\n\n")
    assert initial.startswith("| weights as initialised |")
    assert trained.startswith("| after 1 steps |")
    assert {"torchdiffeq", "`CNF`", "`CNF`, tsit5"} <= rows(initial).keys()
    for told in (initial, trained):
        for row, cells in rows(told).items():
            loss, gradient = errors(told, row)
            assert loss < 1e-3
            assert gradient < 0.05
            assert float(cells[2]) > 0


def test_training_moves_the_field_and_leaves_the_initial_one():
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


def test_first_steps_of_the_flow(tmp_path):
    told = first_step.run(tmp_path / "absent", training_steps=1, n=3).split("\n\n")
    assert "absent does not exist; give STEER_DATA_DIR" in told.pop()
    for width, text in zip(("0", "0.5"), told, strict=True):
        assert text.startswith(f"| 2-D flow after 1 steps, b = {width} |")
        assert list(rows(text)) == ['`first_step="auto"`', '`first_step="previous"`']


def test_first_steps_of_a_config(monkeypatch):
    block = ODEBlock(MLPField(4, (8,)), TorchdiffeqSolver(rtol=1e-4, atol=1e-4))
    module = ClassifierModule(block, nn.Linear(4, 2), 2, stem=nn.Flatten())
    data = pl.LightningDataModule()
    data.train_dataloader = lambda: [(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 3
    monkeypatch.setattr(first_step, "build", lambda *_: (module, data))
    told = first_step.compare_config("name", "", Path(), 0.99, 1e-3, n_train=1, n=2)
    without, steered = told.split("\n\n")
    assert without.startswith("| name after 1 steps, b = 0 |")
    assert steered.startswith("| name after 1 steps, b = 0.99 |")
    auto, previous = (first_step.with_first_step(module, how) for how in ("auto", "previous"))
    assert not auto.block.solver.remembers
    assert previous.block.solver.remembers
    assert previous.block.solver.rtol == 1e-4
    batch = data.train_dataloader()[0]
    nominal, drawn = (
        float(first_step.loss_of_next_batch(module, [batch], b)().detach()) for b in (0.0, 0.9)
    )
    assert nominal == float(module.evaluate(batch)["loss"].detach()) != drawn


def test_recompilations_are_counted(monkeypatch):
    monkeypatch.setattr(recompilations, "STEPS", 2)
    make = partial(toy_flow.CNF, toy_flow.make_field(), (2,))
    assert recompilations.count(make(), "batch") == (0, 0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled.cache_clear()
    first, later = recompilations.count(make(compile=True), "batch")
    compiled.cache_clear()
    assert (first > 0, later) == (True, 0)


def test_stiff_systems_are_solved_alike_by_all(monkeypatch):
    monkeypatch.setattr(stiff, "MAX_NFE", 100)
    monkeypatch.setattr(work, "compiled", lambda function: function)
    steps, learned = stiff.run(tolerance=1e-5, repeats=1, t1=0.02).split("\n\n")
    solved, compiled, failed = learned.splitlines()[2:]
    assert compiled.split("|")[-2] == solved.split("|")[-2]
    assert "solved" in solved
    assert "fails after" in failed
    cells = [row.strip("| ").split(" | ") for row in steps.splitlines()[2:]]
    assert len(cells) == 14
    for _, solver, _, _, _, jacobians, _, error, gradient in cells:
        assert float(error) < 1e-3
        assert float(gradient) < 1e-2
        assert (int(jacobians) > 0) == solver.startswith("ro")
