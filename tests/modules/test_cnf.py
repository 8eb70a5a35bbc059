import math
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules import ToyDensityDataModule
from steer_lightning.callbacks import LastCheckpoint
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField
from steer_lightning.nn.likelihood import standard_normal_log_prob
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.models import tiny_trainer
from tests.helpers.watching import Log, RecordRates


class Still(nn.Module):
    """A field that moves nothing: the flow's density is its base's."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, t, y):
        return self.zero * y


def loader(*tensors, batch_size):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_nll_is_the_weighted_mean_over_all_batches(trainer, stage):
    module = CNFModule(CNF(Still(), (2,)))
    x, weight = torch.randn(7, 2), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.5, 10.0])
    run = trainer.validate if stage == "val" else trainer.test
    log_p = standard_normal_log_prob(x)
    (weighted,) = run(module, loader(x, weight, batch_size=3), verbose=False)
    expected = -(weight * log_p).sum() / weight.sum()
    assert weighted[f"{stage}/nll"] == pytest.approx(float(expected), rel=1e-6)
    (plain,) = run(module, loader(x, batch_size=3), verbose=False)
    assert plain[f"{stage}/nll"] == pytest.approx(float(-log_p.mean()), rel=1e-6)


def test_evaluate_by_hand():
    module = CNFModule(CNF(Still(), (2,)))
    x, weight = torch.randn(4, 2), torch.tensor([0.0, 1.0, 2.0, 5.0])
    log_p = standard_normal_log_prob(x)
    for batch in (x, (x,), [x]):
        torch.testing.assert_close(module.evaluate(batch)["nll"], -log_p.mean())
    found = module.evaluate((x, weight))
    torch.testing.assert_close(found["loss"], -(weight * log_p).sum() / 8.0)
    assert found["nll"] is found["loss"]


def test_quadrature_gives_the_cross_entropy(trainer):
    data = ToyDensityDataModule("mixture1d", n_test=999, test_points="quadrature")
    (result,) = trainer.test(CNFModule(CNF(Still(), (1,))), data, verbose=False)
    means = torch.tensor([-2.8, -0.9, 2.0, 3.4, 5.1], dtype=torch.float64)
    # E[-log N(x; 0, 1)] = (log(2 pi) + E[x^2]) / 2
    second_moment = 0.4 + means.square().mean()
    expected = 0.5 * (torch.log(torch.tensor(2.0 * torch.pi)) + second_moment)
    assert result["test/nll"] == pytest.approx(float(expected), rel=1e-5)


def test_predict_gives_latents_and_densities(trainer):
    module = CNFModule(CNF(ConcatSquashField(2, (8,)), (2,)))
    x = torch.randn(5, 2)
    (prediction,) = trainer.predict(module, loader(x, torch.ones(5), batch_size=5))
    assert prediction.keys() == {"x", "z", "log_p"}
    assert torch.equal(prediction["x"], x)
    with torch.no_grad():
        torch.testing.assert_close(prediction["z"], module.flow(x)[0])
        torch.testing.assert_close(prediction["log_p"], module.flow.log_prob(x))


WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 5.0])


def make_module(hidden=(8,), **settings):
    torch.manual_seed(0)
    solver = FixedGridSolver("rk4", 2)
    return CNFModule(CNF(ConcatSquashField(2, hidden), (2,), solver), **settings)


def points(n=4):
    return torch.linspace(-1.0, 1.0, 2 * n).view(n, 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kinetic", "jacobian"), [(0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
def test_regularisers_enter_the_loss_by_their_weights(kinetic, jacobian, weighted):
    module = make_module(kinetic_weight=kinetic, jacobian_weight=jacobian)
    with torch.no_grad():
        carried = module.flow.transport(points(), regularize=True)
    weight = WEIGHTS if weighted else torch.ones(4)
    means = [
        float((weight * part).sum() / weight.sum())
        for part in (-carried.log_p, carried.kinetic, carried.jacobian)
    ]
    batch = (points(), WEIGHTS) if weighted else (points(),)
    log = Log()
    tiny_trainer(log, max_steps=1).fit(module, loader(*batch, batch_size=4))
    expected = means[0] + kinetic * means[1] + jacobian * means[2]
    assert log.losses == [pytest.approx(expected, rel=1e-5)]
    (logged,) = log.train
    assert logged.pop("train/grad_norm") > 0.0
    names = ("train/nll", "train/kinetic", "train/jacobian")
    named = dict(zip(names, means, strict=True))
    assert logged == pytest.approx({**named, "train/loss": expected}, rel=1e-5)


def test_without_weights_no_regulariser_is_integrated_or_logged():
    module = make_module()
    trainer = tiny_trainer(max_steps=1)
    with patch.object(module.flow, "transport", wraps=module.flow.transport) as transport:
        trainer.fit(module, loader(points(), batch_size=4))
    assert [call.kwargs["regularize"] for call in transport.call_args_list] == [False]
    assert set(trainer.callback_metrics) == {"train/nll", "train/grad_norm"}


def test_regularisers_leave_evaluation_alone(trainer):
    plain, regularised = make_module(), make_module(kinetic_weight=1.0, jacobian_weight=1.0)
    x = points()
    assert torch.equal(plain.evaluate(x)["loss"], regularised.evaluate(x)["loss"])
    batches = loader(x, batch_size=2)
    results = [trainer.validate(module, batches, verbose=False) for module in (plain, regularised)]
    assert results[0] == results[1]


def test_the_norm_of_the_gradient_is_logged_before_it_is_clipped():
    seen = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm())

    trainer = tiny_trainer(Norm(), max_steps=1, gradient_clip_val=1e-3)
    trainer.fit(make_module(), loader(points(), batch_size=4))
    assert float(seen[0]) > 1e-2
    torch.testing.assert_close(trainer.callback_metrics["train/grad_norm"], seen[0])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ({"lr_interval": "step"}, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
        ({}, [0.0, 0.0, 0.0, 0.25, 0.25, 0.25]),
    ],
)
def test_the_schedule_counts_steps_or_epochs(interval, expected):
    module = make_module(
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda count: min(1.0, count / 4)
        ),
        **interval,
    )
    record = RecordRates()
    tiny_trainer(record, max_epochs=2).fit(module, loader(points(6), batch_size=2))
    assert record.rates == pytest.approx([0.1 * factor for factor in expected])


def test_hutchinsons_noise_differs_between_batches_and_not_between_validations():
    flow = CNF(ConcatSquashField(2, (8,)), (2,), trace_estimator="hutchinson")
    module, batches = CNFModule(flow), loader(points(4), batch_size=2)
    trainer = tiny_trainer(max_epochs=2, num_sanity_val_steps=0)
    with patch.object(module, "noise_stream", wraps=module.noise_stream) as noise_stream:
        trainer.fit(module, batches, batches)
    drawn = [call.args for call in noise_stream.call_args_list]
    checks = [("val", 0), ("val", 1)]
    assert drawn == [("train", 0), ("train", 1), *checks, ("train", 2), ("train", 3), *checks]
    values = [torch.rand((), generator=module.noise_stream(*key)).item() for key in {*drawn}]
    assert len({*values}) == 6
    first, second = (module.evaluate(points())["nll"] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinetic_weight": -0.5}, r"weights >= 0, but got kinetic_weight = -0\.5 and jacobian_w"),
        ({"jacobian_weight": -1e-9}, "kinetic_weight = 0.0 and jacobian_weight = -1e-09"),
        ({"lr_interval": "steps"}, "`lr_interval` .*'steps'. Did you mean 'step'"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_module(**arguments)


def test_a_batch_that_weighs_nothing_changes_nothing(trainer):
    module, log = make_module(), Log()
    before = [p.clone() for p in module.parameters()]
    tiny_trainer(log, max_steps=1).fit(module, loader(points(), torch.zeros(4), batch_size=4))
    assert log.losses == [0.0]
    for p, was in zip(module.parameters(), before, strict=True):
        assert torch.equal(p, was)


@pytest.mark.parametrize("weight", [torch.arange(4), torch.ones(4, 1), -torch.ones(4)])
def test_labels_are_no_weights(trainer, weight):
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"to be weights, floats >= 0 .* if it holds labels"):
        trainer.fit(CNFModule(CNF(Still(), (2,))), loader(x, weight, batch_size=4))


def test_a_point_without_a_density_is_not_left_out_of_the_mean(trainer):
    module = CNFModule(CNF(Still(), (2,), FixedGridSolver("euler", 1)))
    x = torch.randn(4, 2)
    x[1] = torch.nan
    (found,) = trainer.validate(module, loader(x, batch_size=2), verbose=False)
    assert math.isnan(found["val/nll"])


def test_noise_counts_its_batches_whatever_hooks_a_subclass_has(tmp_path):
    class Own(CNFModule):
        def on_after_backward(self):
            pass

        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            if batch_idx:
                noise = torch.load(last.path, weights_only=True)["noise"]
                counts.append(noise["batches"])

    counts, last = [], LastCheckpoint(dirpath=tmp_path, every_n_train_steps=1)
    module = Own(CNF(Still(), (2,), trace_estimator="hutchinson"))
    trainer = tiny_trainer(last, enable_checkpointing=True)
    trainer.fit(module, loader(torch.ones(9, 2), batch_size=3))
    assert counts == [1, 2]


def test_a_subclass_that_passes_its_arguments_on_keeps_them():
    class Own(CNFModule):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)

    module = Own(CNF(Still(), (2,)), 0.25, lr_interval="step")
    expected = {"kinetic_weight": 0.25, "lr_interval": "step"}
    assert {name: module.hparams.get(name) for name in expected} == expected
