import csv
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.callbacks import EndTimeSweep, SteerCallback
from steer_lightning.modules import ClassifierModule, CNFModule
from steer_lightning.nn import CNF, ConcatSquashField, ODEBlock
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.callbacks.plots.drawing import (
    images,
    make_cnf,
    make_stiff,
    make_trainer,
    plots,
    stiff_data,
    toy_data,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def read_sweep(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = zip(*([float(cell) for cell in row] for row in rows), strict=True)
    return dict(zip(header, map(list, columns), strict=True))


def test_sweep_over_test_batches(tmp_path, monkeypatch):
    module, data = make_cnf(), toy_data(n_test=24, eval_batch_size=8)
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, n_points=5, n_batches=3))
    (plain,) = trainer.test(module, data, verbose=False)
    assert plots(tmp_path) == ["end_time_sweep_test.csv", "end_time_sweep_test.png"]
    assert list(images(tmp_path)) == ["end_time_sweep_test"]
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep.keys() == {"end_time", "nll", "nfe_forward"}
    assert sweep["end_time"] == pytest.approx([0.5, 0.75, 1.0, 1.25, 1.5])
    assert sweep["nll"][2] == pytest.approx(plain["test/nll"], rel=1e-6)
    x, _ = data.build("test").tensors
    for end_time, nll in zip(sweep["end_time"], sweep["nll"], strict=True):
        shorter = CNF(module.flow.vector_field, (2,), module.flow.solver, t_span=(0.0, end_time))
        assert nll == pytest.approx(-shorter.log_prob(x).mean().item(), rel=1e-5)
    assert len(set(sweep["nll"])) == 5
    assert sweep["nfe_forward"] == [2 * 4] * 5


@pytest.mark.parametrize("n_batches", [1, 2])
def test_sweep_takes_the_first_batches(tmp_path, n_batches):
    module, data = make_cnf(), toy_data(n_test=24, eval_batch_size=8)
    make_trainer(tmp_path, EndTimeSweep(0.5, 3, n_batches)).test(module, data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    x, _ = data.build("test").tensors
    expected = -module.flow.log_prob(x[: 8 * n_batches]).mean()
    assert sweep["nll"][1] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_sweep_has_the_precision_of_the_test(tmp_path, precision):
    module, data = make_cnf(), toy_data(n_test=24)
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 3), precision=precision)
    (plain,) = trainer.test(module, data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-6)


@pytest.mark.parametrize("settings", [{"t_span": (0.0, 0.5)}, {"learn_t1": True}])
def test_models_of_other_end_times_are_swept_over_one_range(tmp_path, settings):
    field, data = make_cnf().flow.vector_field, toy_data(n_test=24)
    flow = CNF(field, (2,), **settings)
    if flow.horizon.learned_t1 is not None:
        nn.init.constant_(flow.horizon.learned_t1, 0.8)
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 3, t1=1.0))
    trainer.test(CNFModule(flow), data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep["end_time"] == [0.5, 1.0, 1.5]
    x, _ = data.build("test").tensors
    for end_time, nll in zip(sweep["end_time"], sweep["nll"], strict=True):
        expected = -CNF(field, (2,), t_span=(0.0, end_time)).log_prob(x).mean()
        assert nll == pytest.approx(expected.item(), rel=1e-4)


def test_sweep_over_quadrature_points_in_one_batch(tmp_path):
    module = make_cnf(1)
    data = toy_data(1, n_test=300, eval_batch_size=300, test_points="quadrature")
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 3, n_batches=1))
    (plain,) = trainer.test(module, data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-5)


def test_batches_count_by_their_samples_or_their_weights(tmp_path):
    module, x = make_cnf(), torch.randn(20, 2)
    weight = torch.cat([torch.full((8,), 0.1), torch.full((8,), 3.0), torch.zeros(4)])
    for tensors, w in (([x], torch.ones(20)), ([x, weight], weight)):
        loader = DataLoader(TensorDataset(*tensors), batch_size=8)
        make_trainer(tmp_path, EndTimeSweep(0.5, 3, n_batches=3)).test(
            module, loader, verbose=False
        )
        sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
        expected = -(w * module.flow.log_prob(x)).sum() / w.sum()
        assert sweep["nll"][1] == pytest.approx(expected.item(), rel=1e-5)


class Whirl(nn.Module):
    """``dy/dt = i w y``: the farther it is solved, the more evaluations it takes."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(8.0))

    def forward(self, t, y):
        return self.w * y.flip(1) * y.new_tensor([-1.0, 1.0])


@pytest.mark.parametrize("own_budget", [None, 400])
def test_sweep_leaves_a_gap_where_a_solve_fails(tmp_path, own_budget):
    solver = TorchdiffeqSolver(max_nfe=own_budget)
    module = CNFModule(CNF(Whirl(), (2,), solver))
    sweep = EndTimeSweep(0.9, 3, max_nfe=160)
    trainer = make_trainer(tmp_path, sweep)
    with pytest.warns(UserWarning, match=r"leaves out T = t1 \+0.9: .* more than max_nfe = 160 "):
        (plain,) = trainer.test(module, toy_data(eval_batch_size=16), verbose=False)
    found = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert found["end_time"] == pytest.approx([0.1, 1.0, 1.9], abs=1e-12)
    assert found["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-6)
    for name in ("nll", "nfe_forward"):
        assert [math.isnan(value) for value in found[name]] == [False, False, True]
    assert solver.max_nfe == own_budget


def test_sweep_counts_the_evaluations_of_a_batch(tmp_path):
    module = ClassifierModule(
        ODEBlock(Whirl(), FixedGridSolver("euler", 1), eval_solver=TorchdiffeqSolver()),
        nn.Identity(),
        num_classes=2,
    )
    x, labels = torch.randn(24, 2), torch.arange(24) % 2
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    make_trainer(tmp_path, EndTimeSweep(0.9, 3, n_batches=2)).test(module, loader, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep.keys() == {"end_time", "accuracy", "nfe_forward"}
    for end_time, nfe in zip(sweep["end_time"], sweep["nfe_forward"], strict=True):
        block = ODEBlock(Whirl(), TorchdiffeqSolver(), t_span=(0.0, end_time))
        for batch in x[:16].chunk(2):
            block(batch)
        assert nfe == block.stats.nfe_forward / 2
    assert sweep["nfe_forward"] == sorted(set(sweep["nfe_forward"]))


def test_sweep_has_no_count_where_nothing_counts(tmp_path):
    class Uncounted(CNFModule):
        def __init__(self, flow):
            super().__init__(flow)
            flow.stats = None

    module = Uncounted(make_cnf().flow)
    make_trainer(tmp_path, EndTimeSweep(0.5, 2)).test(module, toy_data(), verbose=False)
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_test.csv")
    assert sweep.keys() == {"end_time", "nll"}


def test_sweep_draws_nothing_where_every_solve_fails(tmp_path):
    module = CNFModule(CNF(Whirl(), (2,), TorchdiffeqSolver()))
    with pytest.warns(UserWarning, match=r"leaves out T = t1 \-0.5"):
        make_trainer(tmp_path, EndTimeSweep(0.5, 3, max_nfe=1)).test(
            module, toy_data(), verbose=False
        )
    assert plots(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sweep_belongs_to_one_stage(tmp_path, split):
    module, data = make_cnf(), toy_data()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 2, split=split))
    trainer.fit(module, data)
    after_fit = plots(tmp_path)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    names = [f"end_time_sweep_{split}.csv", f"end_time_sweep_{split}.png"]
    assert after_fit == ([] if split == "test" else names)
    assert plots(tmp_path) == names


def test_sweep_over_training_pieces(tmp_path):
    module = make_stiff()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.3, 3, 2, split="train"))
    trainer.fit(module, stiff_data())
    sweep = read_sweep(tmp_path / "run/v/plots/end_time_sweep_train.csv")
    assert sweep.keys() == {
        "end_time",
        "loss",
        "nfe_forward",
    }  # the loss, where there is nothing else
    assert sweep["end_time"] == pytest.approx([0.2, 0.5, 0.8])
    # The loss stands there where there is no other metric.
    assert all(value > 0.0 for value in sweep["loss"])


def test_sweep_leaves_the_model_as_it_was(tmp_path):
    module, data = make_cnf(), toy_data()
    callbacks = [SteerCallback(b=0.5), EndTimeSweep(0.5, 4, split="train")]
    module.train()
    make_trainer(tmp_path, *callbacks).fit(module, data)
    assert module.flow.horizon.in_force() == {"end_time": 1.0}
    assert module.training
    x = torch.randn(3, 2)
    fresh = CNF(module.flow.vector_field, (2,), module.flow.solver)
    assert torch.equal(module.flow.log_prob(x), fresh.log_prob(x))


def test_sweep_leaves_the_model_as_it_was_after_an_error(tmp_path):
    class Failing(CNFModule):
        def evaluate(self, batch):
            if self.flow.horizon.in_force()["end_time"] > 1.2:
                raise RuntimeError("no further")
            return super().evaluate(batch)

    module = Failing(CNF(ConcatSquashField(2, (8,)), (2,)))
    with pytest.raises(RuntimeError, match="no further"):
        make_trainer(tmp_path, EndTimeSweep(0.5)).test(module, toy_data(), verbose=False)
    assert module.flow.horizon.in_force() == {"end_time": 1.0}
    assert plots(tmp_path) == []


def test_sweep_over_validation_batches_needs_some(tmp_path):
    module, data = make_cnf(), toy_data()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, split="val"), limit_val_batches=0)
    with pytest.raises(ValueError, match="Expected val batches to sweep over, but got none"):
        trainer.fit(module, data)
