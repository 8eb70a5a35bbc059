import math
import re
from statistics import median

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchdiffeq import odeint

from datamodules import StiffBatch, StiffODEDataModule, StiffTrajectory
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.modules import StiffODEModule
from steer_lightning.nn import MLPField
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver
from tests.helpers.models import tiny_trainer
from tests.helpers.watching import Log

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def make_batch(interval, dim=1):
    t_start = torch.tensor([0.0, 3.0, 7.5], dtype=torch.float64)
    y_start, y_end = torch.randn(2, 3, dim, dtype=torch.float64)
    return StiffBatch(t_start, y_start, t_start + interval, y_end)


@pytest.mark.parametrize("offset", [0.0, 0.2])
@pytest.mark.parametrize("time_input", ["absolute", "released"])
@pytest.mark.parametrize(
    ("interval", "lengths", "loss"), [(0.5, [0.5] * 3, "mae"), (None, [0.1, 1.0, 2.5], "rms")]
)
def test_loss_against_odeint_by_hand(interval, lengths, loss, time_input, offset):
    field = MLPField(2, (8,)).double()
    module = StiffODEModule(field, interval, time_input, TorchdiffeqSolver(**TIGHT), loss=loss)
    module.block.horizon.perturb(FixedOffset(offset))
    batch = make_batch(torch.tensor(lengths, dtype=torch.float64), dim=2)
    span, errors = 1.0 if interval is None else interval, []
    for t_start, y_start, t_end, y_end in zip(*batch, strict=True):
        begin = t_start if time_input == "absolute" else torch.zeros_like(t_start)
        times = torch.stack([begin, begin + (t_end - t_start) * (span + offset) / span])
        errors.append(odeint(field, y_start[None], times, **TIGHT)[-1, 0] - y_end)
    error = torch.stack(errors)
    expected = error.abs().mean() if loss == "mae" else error.square().mean(0).sqrt().mean()
    torch.testing.assert_close(module.evaluate(batch)["loss"], expected, atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("time_input", ["absolute", "released"])
def test_trajectory_against_odeint_by_hand(time_input):
    field = MLPField(1, (8,)).double()
    module = StiffODEModule(field, 0.5, time_input, TorchdiffeqSolver(**TIGHT))
    t, y0 = torch.linspace(0.0, 3.0, 7, dtype=torch.float64), torch.randn(1).double()
    expected = odeint(field, y0[None], t, **TIGHT)[:, 0]
    torch.testing.assert_close(module(y0, t), expected, atol=1e-7, rtol=0.0)


class Line(nn.Module):
    """``dy/dt = a``; for ``a = 1`` and ``y(0) = 0`` the trajectory is ``t``."""

    def __init__(self, a=1.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, t, y):
        return self.a * torch.ones_like(y)


def test_errors_of_a_trajectory_by_hand(trainer):
    module = StiffODEModule(Line(), solver=FixedGridSolver("euler", 1))
    t = torch.tensor([0.0, 1.0, 4.0])
    # Errors of 0, -2, 1 in a range of 3, and of 0, 0, 2 in one of 2.
    batch = StiffTrajectory(t, torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.0, 2.0]]))
    loader = DataLoader([batch], batch_size=None)
    (found,) = trainer.test(module, loader, verbose=False)
    expected = {"mse": 1.5, "mae": 5 / 6, "relative_error_1": 2 / 3, "relative_error_2": 1.0}
    expected["relative_error"] = 1.0
    assert found == {f"test/{name}": pytest.approx(value) for name, value in expected.items()}
    (states,) = trainer.predict(module, loader)
    assert torch.equal(states, t[:, None].expand(3, 2))


class Overshoot(StiffODEModule):
    """Training steps so large that val/mse goes up and down."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.7)


def stiff_data():
    return StiffODEDataModule(r=2.0, interval=0.5, n_starts=4, batch_size=4, n_test=5)


def train_overshoot(max_epochs, window=3, ckpt_path=None):
    """The trainer, and after each validation the error, its minimum and its median."""
    log = Log()
    trainer = tiny_trainer(log, max_epochs=max_epochs)
    module = Overshoot(Line(3.0), 0.5, solver=FixedGridSolver("euler", 1), window=window)
    trainer.fit(module, stiff_data(), ckpt_path=ckpt_path, weights_only=True)
    names = "val/mse", "val/mse_min", "val/mse_median"
    return trainer, [tuple(metrics[name] for name in names) for metrics in log.val]


def test_minimum_and_median_of_the_checks_survive_a_resume(tmp_path):
    _, checks = train_overshoot(6)
    mse = [check[0] for check in checks]
    assert min(mse) < mse[-1]
    for i, (_, *found) in enumerate(checks):
        expected = min(mse[: i + 1]), median(mse[max(0, i - 2) : i + 1])
        assert found == pytest.approx(expected)
    trainer, first = train_overshoot(4)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, second = train_overshoot(6, ckpt_path=tmp_path / "half.ckpt")
    assert first + second == checks


def test_a_check_that_is_nan_counts_as_infinite():
    class Breaks(Overshoot):
        def forward(self, y0, t):
            return super().forward(y0, t) * (torch.nan if self.current_epoch == 1 else 1.0)

    log, module = Log(), Breaks(Line(3.0), 0.5, solver=FixedGridSolver("euler", 1), window=3)
    tiny_trainer(log, max_epochs=4).fit(module, stiff_data())
    mse = [metrics["val/mse"] for metrics in log.val]
    assert math.isnan(mse[1])
    mse[1] = math.inf
    for i, metrics in enumerate(log.val):
        assert metrics["val/mse_min"] == pytest.approx(min(mse[: i + 1]))
        assert metrics["val/mse_median"] == pytest.approx(median(mse[max(0, i - 2) : i + 1]))


def test_checks_are_those_of_the_training_and_of_the_checkpoint():
    trainer, checks = train_overshoot(3)
    module = trainer.lightning_module
    again = Log()
    tiny_trainer(again, max_epochs=1).fit(module, stiff_data())
    assert again.val[0]["val/mse_min"] == again.val[0]["val/mse"]  # of the second training alone
    trainer, checks = train_overshoot(3)
    module = trainer.lightning_module

    def saved():
        module.on_save_checkpoint(content := {})
        return content["mse_checks"]

    assert saved()["recent"] == pytest.approx([check[0] for check in checks])
    before = saved()
    (found,) = trainer.validate(module, stiff_data(), verbose=False)
    assert found.keys() & {"val/mse", "val/mse_min", "val/mse_median"} == {"val/mse"}
    assert saved() == before
    module.on_load_checkpoint({})  # of the validation
    assert saved() == before
    module.trainer = None
    module.on_load_checkpoint({})
    assert saved() == {"minimum": float("inf"), "recent": []}


def test_default_network_is_that_of_the_reference():
    module = StiffODEModule()
    shapes = [tuple(p.shape) for p in module.block.vector_field.parameters() if p.ndim == 2]
    assert shapes == [(500, 2), (500, 500), (1, 500)]
    hidden = module.block.vector_field.network[2].weight
    assert hidden.std().item() == pytest.approx(0.1, rel=0.01)
    solver = module.block.solver
    assert (solver.method, solver.rtol, solver.atol) == ("dopri5", 1e-7, 1e-9)
    assert module.block.horizon.describe() == "[0, 0.125]"


def test_interval_of_module_and_data_must_agree():
    module = StiffODEModule(MLPField(1, (4,)), interval=0.125)
    message = (
        "Expected pieces of length interval = 0.125, but got lengths 0.5 to 0.5. Give module and "
        "data the same interval, or the module interval=None"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        module.evaluate(make_batch(0.5))
    late = torch.tensor([14.9])  # rounding of late times in float32 is no mismatch
    for interval in (0.125, 0.002):
        module = StiffODEModule(MLPField(1, (4,)), interval)
        module.evaluate(StiffBatch(late, torch.zeros(1, 1), late + interval, torch.zeros(1, 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_input": "release"}, r"`time_input` to be one of .*'release'.*'released'"),
        ({"loss": "mse"}, r"`loss` to be one of .*'mse'.*'rms'"),
        ({"slope_weight": -1.0}, "Expected slope_weight >= 0, .* but got -1.0, 1.0 and 25"),
        ({"slope_scale": 0.0}, "slope_scale > 0 and window >= 1, but got 0.0, 0.0 and 25"),
        ({"window": 0}, "window >= 1, but got 0.0, 1.0 and 0"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        StiffODEModule(MLPField(1, (4,)), **arguments)


def test_evaluation_has_a_solver_of_its_own():
    solvers = FixedGridSolver("euler", 1), FixedGridSolver("rk4", 1)
    block = StiffODEModule(Line(), solver=solvers[0], eval_solver=solvers[1]).block
    assert (block.solver, block.eval_solver) == solvers


@pytest.mark.parametrize("time_input", ["absolute", "released"])
def test_slopes_are_compared_in_the_middle_by_their_logarithms(time_input):
    class Field(nn.Module):
        def forward(self, t, y):
            return (1.0 + t.reshape(-1, 1)) * y.cos()

    module = StiffODEModule(Field(), None, time_input, slope_weight=2.0, slope_scale=0.1)
    t0, y0, t1, y1 = batch = make_batch(torch.tensor([0.5, 1e-3, 2.0], dtype=torch.float64))
    middle = (t0 + t1) / 2 if time_input == "absolute" else (t1 - t0) / 2
    field = (1.0 + middle[:, None]) * ((y0 + y1) / 2).cos()
    chord = (y1 - y0) / (t1 - t0)[:, None]
    by_hand = ((10.0 * field).asinh() - (10.0 * chord).asinh()).abs().mean()
    torch.testing.assert_close(module.slope_error(batch), by_hand)
    module.log = lambda *_, **__: None
    loss = module.training_step(batch, 0)
    torch.testing.assert_close(loss, module.evaluate(batch)["loss"] + 2.0 * by_hand)
