import csv
import math
import re

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from datamodules import StiffODEDataModule, ToyDensityDataModule
from steer_lightning.callbacks import EndTimeSweep, FlowPicture, SteerCallback, StiffPicture
from steer_lightning.modules import CNFModule, StiffODEModule
from steer_lightning.nn import CNF, ConcatSquashField, MLPField
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.callbacks.drawing import CountBatches, images, make_trainer, pictures

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_cnf(dim=2, **arguments):
    solver = FixedGridSolver("rk4", 2)
    return CNFModule(CNF(ConcatSquashField(dim, (8,)), (dim,), solver, **arguments))


def toy_data(dim=2, **arguments):
    name = {1: "mixture1d", 2: "8gaussians"}[dim]
    return ToyDensityDataModule(name, **{"n_train": 16, "n_val": 16, "n_test": 16, **arguments})


def make_stiff():
    return StiffODEModule(MLPField(1, (8,)), 0.5, solver=FixedGridSolver("rk4", 1))


def stiff_data():
    return StiffODEDataModule(r=5.0, interval=0.5, n_starts=12, batch_size=4, n_test=5)


def read_sweep(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = zip(*([float(cell) for cell in row] for row in rows), strict=True)
    return dict(zip(header, map(list, columns), strict=True))


@pytest.mark.parametrize("data_at", ["t0", "t1"])
@pytest.mark.parametrize("dim", [1, 2])
def test_flow_picture(tmp_path, dim, data_at):
    module, data = make_cnf(dim, data_at=data_at), toy_data(dim)
    trainer = make_trainer(tmp_path, FlowPicture(), max_epochs=2)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert pictures(tmp_path) == ["flow_test.png", "flow_val.png"]
    for path in (tmp_path / "run" / "v" / "pictures").iterdir():
        assert path.read_bytes()[:8] == PNG
    assert images(tmp_path) == {"flow_val": [1, 2], "flow_test": [2]}


def test_figure_of_a_one_dimensional_flow():
    class Widen(nn.Module):
        """``f = y log 2``: the base with deviation 1 becomes data with deviation 2."""

        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(2.0).log())

        def forward(self, t, y):
            return self.rate * y

    module = CNFModule(CNF(Widen(), (1,), FixedGridSolver("rk4", 8)))
    figure = FlowPicture().draw(module, (torch.zeros(4, 1), torch.ones(4)))
    left, right = figure.axes
    paths = [line.get_xydata() for line in left.lines]
    for path in paths:  # time against place, from base to data
        assert (path[0, 0], path[-1, 0]) == (0.0, 1.0)
        assert path[-1, 1] == pytest.approx(2.0 * path[0, 1], rel=1e-3)
    density, x = right.lines[0].get_xydata().T
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(torch.tensor(x)).exp()
    torch.testing.assert_close(torch.tensor(density), expected, atol=1e-3, rtol=0.0)


def test_figure_of_a_two_dimensional_flow():
    figure = FlowPicture().draw(make_cnf(), torch.zeros(4, 2))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["t = 0.00", "t = 0.33", "t = 0.67", "t = 1.00", "data"]
    base = torch.as_tensor(figure.axes[0].images[0].get_array())
    side = torch.linspace(-4.0, 4.0, 80).double()
    expected = (-0.5 * (side[:, None] ** 2 + side**2)).exp() / (2.0 * torch.pi)
    torch.testing.assert_close(base.double(), expected, atol=1e-6, rtol=0.0)


def test_drawing_changes_neither_weights_nor_random_state(tmp_path):
    def train(*callbacks):
        torch.manual_seed(0)
        module = make_cnf()
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=3, logger=False)
        trainer.fit(module, toy_data())
        return module.state_dict(), torch.get_rng_state()

    plain, drawn = train(), train(FlowPicture(), EndTimeSweep(0.5, 3, split="train"))
    assert all(torch.equal(plain[0][key], drawn[0][key]) for key in plain[0])
    assert torch.equal(plain[1], drawn[1])


def test_stiff_picture(tmp_path):
    module, data = make_stiff(), stiff_data()
    trainer = make_trainer(tmp_path, StiffPicture(every_n_checks=2), max_epochs=5)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert pictures(tmp_path) == ["trajectory_test.png", "trajectory_val.png"]
    assert images(tmp_path) == {"trajectory_val": [6, 12], "trajectory_test": [15]}
    t, y = data.build("test").trajectory
    with torch.no_grad():
        figure = StiffPicture().draw(module, (t, y))
        predicted = module(y[0], t)
    true_line, predicted_line = figure.axes[0].lines
    torch.testing.assert_close(torch.tensor(true_line.get_ydata()), y[:, 0].double())
    torch.testing.assert_close(torch.tensor(predicted_line.get_ydata()), predicted[:, 0].double())


def test_pictures_without_tensorboard(tmp_path):
    for logger, folder in ((False, tmp_path), (CSVLogger(tmp_path, "c", 0), None)):
        trainer = make_trainer(tmp_path, FlowPicture(), EndTimeSweep(0.5, 2), logger=logger)
        trainer.test(make_cnf(), toy_data(), verbose=False)
        names = sorted(p.name for p in (folder or tmp_path / "c/version_0").glob("pictures/*"))
        expected = ["end_time_sweep_test.csv", "end_time_sweep_test.png", "flow_test.png"]
        assert names == expected


def test_sweep_over_test_batches(tmp_path, monkeypatch):
    module, data = make_cnf(), toy_data(n_test=24, eval_batch_size=8)
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, n_points=5, n_batches=3))
    (plain,) = trainer.test(module, data, verbose=False)
    assert pictures(tmp_path) == ["end_time_sweep_test.csv", "end_time_sweep_test.png"]
    assert list(images(tmp_path)) == ["end_time_sweep_test"]
    sweep = read_sweep(tmp_path / "run/v/pictures/end_time_sweep_test.csv")
    assert sweep.keys() == {"end_time", "nll"}
    assert sweep["end_time"] == pytest.approx([0.5, 0.75, 1.0, 1.25, 1.5])
    assert sweep["nll"][2] == pytest.approx(plain["test/nll"], rel=1e-6)
    x, _ = data.build("test").tensors
    for end_time, nll in zip(sweep["end_time"], sweep["nll"], strict=True):
        shorter = CNF(module.flow.vector_field, (2,), module.flow.solver, t_span=(0.0, end_time))
        assert nll == pytest.approx(-shorter.log_prob(x).mean().item(), rel=1e-5)
    assert len(set(sweep["nll"])) == 5


@pytest.mark.parametrize("n_batches", [1, 2])
def test_sweep_takes_the_first_batches(tmp_path, n_batches):
    module, data = make_cnf(), toy_data(n_test=24, eval_batch_size=8)
    make_trainer(tmp_path, EndTimeSweep(0.5, 3, n_batches)).test(module, data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/pictures/end_time_sweep_test.csv")
    x, _ = data.build("test").tensors
    expected = -module.flow.log_prob(x[: 8 * n_batches]).mean()
    assert sweep["nll"][1] == pytest.approx(expected.item(), rel=1e-6)


def test_sweep_over_quadrature_points_in_one_batch(tmp_path):
    module = make_cnf(1)
    data = toy_data(1, n_test=300, eval_batch_size=300, test_points="quadrature")
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 3, n_batches=1))
    (plain,) = trainer.test(module, data, verbose=False)
    sweep = read_sweep(tmp_path / "run/v/pictures/end_time_sweep_test.csv")
    assert sweep["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-5)


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
    found = read_sweep(tmp_path / "run/v/pictures/end_time_sweep_test.csv")
    assert found["end_time"] == pytest.approx([0.1, 1.0, 1.9], abs=1e-12)
    assert found["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-6)
    assert [math.isnan(value) for value in found["nll"]] == [False, False, True]
    assert solver.max_nfe == own_budget


def test_sweep_draws_nothing_where_every_solve_fails(tmp_path):
    module = CNFModule(CNF(Whirl(), (2,), TorchdiffeqSolver()))
    with pytest.warns(UserWarning, match=r"leaves out T = t1 \-0.5"):
        make_trainer(tmp_path, EndTimeSweep(0.5, 3, max_nfe=1)).test(
            module, toy_data(), verbose=False
        )
    assert pictures(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sweep_belongs_to_one_stage(tmp_path, split):
    module, data = make_cnf(), toy_data()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 2, split=split))
    trainer.fit(module, data)
    after_fit = pictures(tmp_path)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    names = [f"end_time_sweep_{split}.csv", f"end_time_sweep_{split}.png"]
    assert after_fit == ([] if split == "test" else names)
    assert pictures(tmp_path) == names


def test_sweep_over_training_pieces(tmp_path):
    module = make_stiff()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.3, 3, 2, split="train"))
    trainer.fit(module, stiff_data())
    sweep = read_sweep(tmp_path / "run/v/pictures/end_time_sweep_train.csv")
    assert sweep.keys() == {"end_time", "loss"}  # the loss, where there is nothing else
    assert sweep["end_time"] == pytest.approx([0.2, 0.5, 0.8])
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
    assert pictures(tmp_path) == []


class NoSpan(LightningModule):
    """A module that has nothing a picture could be drawn of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class NoSpanButEvaluate(NoSpan):
    def evaluate(self, batch):
        return {"loss": batch[0].mean()}


class ThreeDimensional(NoSpan):
    def __init__(self):
        super().__init__()
        self.flow = CNF(ConcatSquashField(3, (4,)), (3,))


@pytest.mark.parametrize(
    ("callback", "make", "message"),
    [
        (FlowPicture(), NoSpan, "Expected a module with a CNF of one or two dimensions as `flow`"),
        (FlowPicture(), ThreeDimensional, "as `flow`, but got ThreeDimensional. Leave FlowPict"),
        (EndTimeSweep(0.5), NoSpan, "Expected a module with a method `evaluate(batch)`"),
        (EndTimeSweep(0.5), NoSpanButEvaluate, "Expected a model with a SpanHorizon, but NoSpan"),
        (EndTimeSweep(1.0), make_cnf, "Expected an offset that keeps the end time apart from t0"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_wrong_models_are_refused_before_the_first_batch(tmp_path, callback, make, message, stage):
    if isinstance(callback, EndTimeSweep):
        callback = EndTimeSweep(callback.b, split="train" if stage == "fit" else "test")
    batches = CountBatches()
    trainer = make_trainer(tmp_path, batches, callback, num_sanity_val_steps=0)
    run = trainer.fit if stage == "fit" else trainer.test
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        run(make(), toy_data())
    assert batches.n == 0
    assert pictures(tmp_path) == []


def test_wrong_model_is_refused_in_validate(tmp_path):
    trainer = make_trainer(tmp_path, FlowPicture())
    with pytest.raises(TypeError, match="Expected a module with a CNF"):
        trainer.validate(NoSpan(), toy_data(), verbose=False)


def test_sweep_over_validation_batches_needs_some(tmp_path):
    module, data = make_cnf(), toy_data()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, split="val"), limit_val_batches=0)
    with pytest.raises(ValueError, match="Expected val batches to sweep over, but got none"):
        trainer.fit(module, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowPicture(every_n_checks=0), "Expected `every_n_checks` >= 1, but got 0"),
        (
            lambda: EndTimeSweep(0.0),
            "Expected b > 0, n_points >= 2, n_batches >= 1 and max_nfe >= 1",
        ),
        (lambda: EndTimeSweep(0.5, max_nfe=0), "max_nfe = 0"),
        (lambda: EndTimeSweep(float("nan")), "but got b = nan"),
        (lambda: EndTimeSweep(0.5, n_points=1), "n_points = 1"),
        (lambda: EndTimeSweep(0.5, n_batches=0), "n_batches = 0"),
        (lambda: EndTimeSweep(0.5, split="vla"), "Did you mean 'val'?"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
