import re
from statistics import median

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchdiffeq import odeint

from datamodules import StiffBatch, StiffODEDataModule, StiffTrajectory
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.modules import StiffODEModule
from steer_lightning.nn import MLPField
from steer_lightning.solvers import FixedGridSolver, TorchdiffeqSolver

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_batch(interval=0.5):
    t_start = torch.tensor([0.0, 3.0, 7.5], dtype=torch.float64)
    y_start, y_end = torch.randn(2, 3, 1, dtype=torch.float64)
    return StiffBatch(t_start, y_start, t_start + interval, y_end)


def make_trainer(tmp_path, **arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **arguments,
    )


@pytest.mark.parametrize("offset", [0.0, 0.2])
@pytest.mark.parametrize("time_input", ["absolute", "released"])
def test_loss_against_odeint_by_hand(time_input, offset):
    field = MLPField(1, (8,)).double()
    module = StiffODEModule(field, 0.5, time_input, TorchdiffeqSolver(**TIGHT))
    module.block.horizon.perturb(FixedOffset(offset))
    batch = make_batch()
    errors = []
    for t_start, y_start, _, y_end in zip(*batch, strict=True):
        start = float(t_start) if time_input == "absolute" else 0.0
        times = torch.tensor([start, start + 0.5 + offset], dtype=torch.float64)
        predicted = odeint(field, y_start[None], times, **TIGHT)[-1]
        errors.append((predicted - y_end).abs())
    expected = torch.cat(errors).mean()
    torch.testing.assert_close(module.evaluate(batch)["loss"], expected, atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("offset", [0.0, 0.2])
@pytest.mark.parametrize("time_input", ["absolute", "released"])
def test_pieces_with_lengths_of_their_own_against_odeint_by_hand(time_input, offset):
    field = MLPField(2, (8,)).double()
    module = StiffODEModule(field, None, time_input, TorchdiffeqSolver(**TIGHT), loss="rms")
    module.block.horizon.perturb(FixedOffset(offset))
    t_start = torch.tensor([0.0, 3.0, 7.5], dtype=torch.float64)
    t_end = torch.tensor([0.1, 4.0, 10.0], dtype=torch.float64)
    y_start, y_end = torch.randn(2, 3, 2, dtype=torch.float64)
    squares = []
    for first, start, last, end in zip(t_start, y_start, t_end, y_end, strict=True):
        length = (1.0 + offset) * (last - first)
        begin = first if time_input == "absolute" else torch.zeros_like(first)
        times = torch.stack([begin, begin + length])
        squares.append((odeint(field, start[None], times, **TIGHT)[-1, 0] - end).square())
    expected = torch.stack(squares).mean(0).sqrt().mean()
    found = module.evaluate(StiffBatch(t_start, y_start, t_end, y_end))["loss"]
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0.0)


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


def test_errors_of_a_trajectory_by_hand(tmp_path):
    module = StiffODEModule(Line(), solver=FixedGridSolver("euler", 1))
    t = torch.tensor([0.0, 1.0, 4.0])
    # Errors of 0, -2, 1 in a range of 3, and of 0, 0, 2 in one of 2.
    batch = StiffTrajectory(t, torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.0, 2.0]]))
    trainer = make_trainer(tmp_path)
    loader = DataLoader([batch], batch_size=None)
    (found,) = trainer.test(module, loader, verbose=False)
    expected = {"mse": 1.5, "mae": 5 / 6, "relative_error_1": 2 / 3, "relative_error_2": 1.0}
    expected["relative_error"] = 1.0
    assert found == {f"test/{name}": pytest.approx(value) for name, value in expected.items()}
    (states,) = trainer.predict(module, loader)
    assert torch.equal(states, t[:, None].expand(3, 2))


class Checks(Callback):
    """Every value of val/mse, and what was made of them."""

    def __init__(self):
        self.mse, self.minimum, self.median = [], [], []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            for name in ("mse", "minimum", "median"):
                key = {"mse": "val/mse", "minimum": "val/mse_min"}.get(name, "val/mse_median")
                getattr(self, name).append(trainer.callback_metrics[key].item())


class Overshoot(StiffODEModule):
    """Training steps so large that val/mse goes up and down."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.7)


def make_overshoot(window=3):
    return Overshoot(Line(3.0), 0.5, solver=FixedGridSolver("euler", 1), window=window)


def stiff_data():
    return StiffODEDataModule(r=2.0, interval=0.5, n_starts=4, batch_size=4, n_test=5)


def test_minimum_and_median_of_the_checks(tmp_path):
    checks = Checks()
    trainer = make_trainer(tmp_path, max_epochs=6, callbacks=[checks])
    trainer.fit(make_overshoot(), stiff_data())
    assert len(checks.mse) == 6
    assert min(checks.mse) < checks.mse[-1]
    for i in range(6):
        assert checks.minimum[i] == pytest.approx(min(checks.mse[: i + 1]))
        assert checks.median[i] == pytest.approx(median(checks.mse[max(0, i - 2) : i + 1]))


def test_checks_survive_a_resume(tmp_path):
    whole, first, second = Checks(), Checks(), Checks()
    make_trainer(tmp_path, max_epochs=6, callbacks=[whole]).fit(make_overshoot(), stiff_data())
    trainer = make_trainer(tmp_path, max_epochs=4, callbacks=[first])
    trainer.fit(make_overshoot(), stiff_data())
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    trainer = make_trainer(tmp_path, max_epochs=6, callbacks=[second])
    trainer.fit(make_overshoot(), stiff_data(), ckpt_path=path, weights_only=True)
    assert first.mse + second.mse == whole.mse
    assert second.minimum == whole.minimum[4:]
    assert second.median == whole.median[4:]


def test_checkpoint_replaces_the_checks_of_the_module(tmp_path):
    checks = Checks()
    module = make_overshoot(window=100)
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[checks])
    trainer.fit(module, stiff_data())
    path = tmp_path / "end.ckpt"
    trainer.save_checkpoint(path)
    (found,) = trainer.validate(module, stiff_data(), ckpt_path=path, verbose=False)
    history = [*checks.mse[:3], found["val/mse"]]
    assert median(history) != pytest.approx(median(checks.mse[:3] + history))
    assert found["val/mse_median"] == pytest.approx(median(history))


def test_checkpoint_without_checks_starts_afresh(tmp_path):
    module = make_overshoot()
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(module, stiff_data())
    path = tmp_path / "old.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content.pop("mse_checks")["recent"]
    torch.save(content, path)
    (found,) = trainer.validate(module, stiff_data(), ckpt_path=path, verbose=False)
    assert found["val/mse_min"] == found["val/mse"] == found["val/mse_median"]


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
    late = torch.tensor([14.875])  # rounding of late times in float32 is no mismatch
    module.evaluate(StiffBatch(late, torch.zeros(1, 1), late + 0.125, torch.zeros(1, 1)))


def test_unknown_time_input_raises():
    with pytest.raises(ValueError, match=r"`time_input` to be one of .*'release'.*'released'"):
        StiffODEModule(MLPField(1, (4,)), time_input="release")


def test_unknown_loss_raises():
    with pytest.raises(ValueError, match=r"`loss` to be one of .*'mse'.*'rms'"):
        StiffODEModule(MLPField(1, (4,)), loss="mse")


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


@pytest.mark.parametrize("values", [{"slope_weight": -1.0}, {"slope_scale": 0.0}])
def test_weight_and_scale_of_slopes_are_checked(values):
    with pytest.raises(ValueError, match="slope_weight >= 0 and slope_scale > 0, but got"):
        StiffODEModule(MLPField(1, (4,)), **values)
