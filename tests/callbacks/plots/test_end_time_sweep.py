import csv
import math

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
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
from tests.helpers.watching import weights


def read_sweep(tmp_path, split="test"):
    with (tmp_path / f"run/v/plots/end_time_sweep_{split}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = zip(*([float(cell) for cell in row] for row in rows), strict=True)
    return dict(zip(header, map(list, columns), strict=True))


def swept(tmp_path, callback, module, data, **settings):
    """The numbers of a sweep after a test, and the metrics of the test."""
    trainer = make_trainer(tmp_path, callback, **settings)
    (plain,) = trainer.test(module, data, verbose=False)
    return read_sweep(tmp_path), plain


@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_sweep_over_the_first_test_batches(tmp_path, n_batches):
    module, data = make_cnf(), toy_data(n_test=24, eval_batch_size=8)
    sweep, _ = swept(tmp_path, EndTimeSweep(0.5, 5, n_batches), module, data)
    assert plots(tmp_path) == ["end_time_sweep_test.csv", "end_time_sweep_test.png"]
    assert list(images(tmp_path)) == ["end_time_sweep_test"]
    assert sweep.keys() == {"end_time", "nll", "nfe_forward"}
    assert sweep["end_time"] == pytest.approx([0.5, 0.75, 1.0, 1.25, 1.5])
    x = data.build("test").tensors[0][: 8 * n_batches]
    for end_time, nll in zip(sweep["end_time"], sweep["nll"], strict=True):
        shorter = CNF(module.flow.vector_field, (2,), module.flow.solver, t_span=(0.0, end_time))
        assert nll == pytest.approx(-shorter.log_prob(x).mean().item(), rel=1e-5)
    assert len(set(sweep["nll"])) == 5
    assert sweep["nfe_forward"] == [2 * 4] * 5


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_sweep_has_the_precision_of_the_test(tmp_path, precision):
    module, data = make_cnf(), toy_data(n_test=24)
    sweep, plain = swept(tmp_path, EndTimeSweep(0.5, 3), module, data, precision=precision)
    assert sweep["nll"][1] == pytest.approx(plain["test/nll"], rel=1e-6)


@pytest.mark.parametrize("settings", [{"t_span": (0.0, 0.5)}, {"learn_t1": True}])
def test_models_of_other_end_times_are_swept_over_one_range(tmp_path, settings):
    field, data = make_cnf().flow.vector_field, toy_data(n_test=24)
    flow = CNF(field, (2,), **settings)
    if flow.horizon.learned_t1 is not None:
        nn.init.constant_(flow.horizon.learned_t1, 0.8)
    sweep, _ = swept(tmp_path, EndTimeSweep(0.5, 3, t1=1.0), CNFModule(flow), data)
    assert sweep["end_time"] == [0.5, 1.0, 1.5]
    x, _ = data.build("test").tensors
    for end_time, nll in zip(sweep["end_time"], sweep["nll"], strict=True):
        expected = -CNF(field, (2,), t_span=(0.0, end_time)).log_prob(x).mean()
        assert nll == pytest.approx(expected.item(), rel=1e-4)


def test_batches_count_by_their_samples_or_their_weights(tmp_path):
    module, x = make_cnf(), torch.randn(20, 2)
    weight = torch.cat([torch.full((8,), 0.1), torch.full((8,), 3.0), torch.zeros(4)])
    for tensors, w in (([x], torch.ones(20)), ([x, weight], weight)):
        loader = DataLoader(TensorDataset(*tensors), batch_size=8)
        sweep, _ = swept(tmp_path, EndTimeSweep(0.5, 3, n_batches=3), module, loader)
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
    module, data = CNFModule(CNF(Whirl(), (2,), solver)), toy_data(eval_batch_size=16)
    with pytest.warns(UserWarning, match=r"leaves out T = t1 \+0.9: .* more than max_nfe = 160 "):
        found, plain = swept(tmp_path, EndTimeSweep(0.9, 3, max_nfe=160), module, data)
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
    sweep, _ = swept(tmp_path, EndTimeSweep(0.9, 3, n_batches=2), module, loader)
    assert sweep.keys() == {"end_time", "accuracy", "nfe_forward"}
    for end_time, nfe in zip(sweep["end_time"], sweep["nfe_forward"], strict=True):
        block = ODEBlock(Whirl(), TorchdiffeqSolver(), t_span=(0.0, end_time))
        for batch in x[:16].chunk(2):
            block(batch)
        assert nfe == block.stats.nfe_forward / 2
    assert sweep["nfe_forward"] == sorted(set(sweep["nfe_forward"]))


def test_sweep_has_no_count_where_nothing_counts(tmp_path):
    module = make_cnf()
    module.flow.stats = None
    sweep, _ = swept(tmp_path, EndTimeSweep(0.5, 2), module, toy_data())
    assert sweep.keys() == {"end_time", "nll"}


def test_sweep_draws_nothing_where_every_solve_fails(tmp_path):
    module = CNFModule(CNF(Whirl(), (2,), TorchdiffeqSolver()))
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 3, max_nfe=1))
    with pytest.warns(UserWarning, match=r"leaves out T = t1 \-0.5"):
        trainer.test(module, toy_data(), verbose=False)
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


def test_two_sweeps_of_one_split_keep_their_files(tmp_path):
    sweeps = EndTimeSweep(0.1, 2), EndTimeSweep(0.5, 2), EndTimeSweep(0.1, 2, split="val")
    swept(tmp_path, sweeps[0], make_cnf(), toy_data())
    trainer = make_trainer(tmp_path, *sweeps)
    trainer.test(make_cnf(), toy_data(), verbose=False)
    names = ("end_time_sweep_test", "end_time_sweep_test_2")
    assert plots(tmp_path) == sorted(f"{name}.{kind}" for name in names for kind in ("csv", "png"))
    assert read_sweep(tmp_path, "test_2")["end_time"] == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize("behind", [False, True])
def test_a_sweep_before_the_weights_are_averaged_says_so(tmp_path, behind, recwarn):
    callbacks = EndTimeSweep(0.5, 2, split="val"), EMAWeightAveraging()
    module = make_cnf()
    make_trainer(tmp_path, *callbacks[:: -1 if behind else 1]).fit(module, toy_data())
    said = [
        str(w.message) for w in recwarn if "sweeps the weights of the last step" in str(w.message)
    ]
    assert len(said) == (not behind)


def test_sweep_over_training_pieces(tmp_path):
    trainer = make_trainer(tmp_path, EndTimeSweep(0.3, 3, 2, split="train"))
    trainer.fit(make_stiff(), stiff_data())
    sweep = read_sweep(tmp_path, "train")
    # The loss stands there where there is no other metric.
    assert sweep.keys() == {"end_time", "loss", "nfe_forward"}
    assert sweep["end_time"] == pytest.approx([0.2, 0.5, 0.8])
    assert all(value > 0.0 for value in sweep["loss"])
    with pytest.raises(ValueError, match="Expected split='train' of EndTimeSweep for StiffODEM"):
        make_trainer(tmp_path, EndTimeSweep(0.3)).test(make_stiff(), stiff_data(), verbose=False)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_sweep_leaves_model_and_random_state_as_they_were(tmp_path, precision):
    def train(*callbacks):
        torch.manual_seed(0)
        module = make_cnf().train()
        module.flow.vector_field.eval()
        trainer = make_trainer(tmp_path, SteerCallback(0.5), *callbacks, precision=precision)
        trainer.fit(module, toy_data())
        return module, torch.get_rng_state()

    (plain, plain_state), (module, state) = train(), train(EndTimeSweep(0.5, 4, split="train"))
    assert torch.equal(weights(module), weights(plain))
    assert torch.equal(state, plain_state)
    assert module.flow.horizon.in_force() == {"end_time": 1.0}
    assert module.training
    assert not module.flow.vector_field.training
    x = torch.randn(3, 2).to(weights(module))
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


@pytest.mark.parametrize(
    "limits", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}]
)
def test_sweep_over_validation_batches_needs_some(tmp_path, limits):
    module, data = make_cnf(), toy_data()
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, split="val"), max_epochs=1, **limits)
    if "limit_val_batches" in limits:
        with pytest.raises(ValueError, match="Expected val batches to sweep over, but got none"):
            trainer.fit(module, data)
        assert trainer.global_step == 0
    else:
        with pytest.warns(UserWarning, match="training ended before a validation"):
            trainer.fit(module, data)


@pytest.mark.parametrize("split", ["train", "val"])
def test_sweep_over_several_loaders(tmp_path, split):
    class First(CNFModule):
        """Trains on what the first of several training loaders gives."""

        def on_train_batch_start(self, batch, batch_idx):
            pass

        def loss_weight(self, batch):
            pass

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

        def evaluate(self, batch):
            return super().evaluate(batch["a"] if isinstance(batch, dict) else batch)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    loaders = [DataLoader(torch.randn(n, 2), batch_size=4) for n in (8, 4)]
    trainer = make_trainer(tmp_path, EndTimeSweep(0.5, 2, n_batches=3, split=split), max_epochs=1)
    trainer.fit(First(make_cnf().flow), dict(zip("ab", loaders, strict=True)), loaders)
    assert all(map(math.isfinite, read_sweep(tmp_path, split)["nll"]))


def test_a_learned_end_time_that_comes_close_to_its_start_leaves_a_gap(tmp_path):
    flow = CNF(ConcatSquashField(2, (8,)), (2,), FixedGridSolver("euler", 1), learn_t1=True)
    callback = EndTimeSweep(0.5, 3)
    trainer = make_trainer(tmp_path, callback)

    class Closes(CNFModule):
        def on_test_epoch_end(self):
            self.flow.horizon.learned_t1.data.fill_(0.4)

    with pytest.warns(UserWarning, match=r"leaves out T = t1 -0\.5: .*apart from t0"):
        trainer.test(Closes(flow), toy_data(), verbose=False)
    nll = read_sweep(tmp_path)["nll"]
    assert math.isnan(nll[0])
    assert all(map(math.isfinite, nll[1:]))
