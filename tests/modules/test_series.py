"""Losses, metrics and checks of irregular series, with forecasts that are known."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules.base import keep_batch
from datamodules.series import SeriesData
from steer_lightning.modules import LatentODEModule, ODERNNModule
from steer_lightning.modules.series import DefinedAUROC
from steer_lightning.nn import Forecast, Posterior
from steer_lightning.nn.series import make_series

N_STATES = 2


class Known(nn.Module):
    """Two draws: the values plus one and plus three; the state tells the class."""

    n_features = 1

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(1, 1)

    def forward(self, batch, n_draws=2, generator=None):
        n = len(batch.times)
        mean = torch.stack([batch.values + 1.0, batch.values + 3.0])
        along = batch.values.expand(2, -1, -1, N_STATES) * torch.tensor([1.0, -1.0])
        posterior = Posterior(torch.full((n, 2), 2.0), torch.ones(n, 2))
        return Forecast(batch, mean, along, along[:, :, 0], posterior)


def series(labels=None):
    """Three series of 3, 2 and 1 times; one target is hidden in the first."""
    values = [torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([[-1.0], [4.0]]), torch.ones(1, 1)]
    seen = [torch.ones_like(x) for x in values]
    targets = [torch.tensor([[1.0], [0.0], [1.0]]), *seen[1:]]
    times = [torch.arange(float(len(x))) for x in values]
    return make_series(times, values, seen, targets, labels)


OF_SERIES = [torch.tensor(x) for x in (0, 0, 1)]
OF_TIMES = [torch.tensor([0, 1, -1]), torch.tensor([1, 0]), torch.tensor([0])]


def make(**arguments):
    return LatentODEModule(Known(), noise_std=2.0, **arguments)


def loader(batch, batch_size):
    return DataLoader(SeriesData(batch), batch_size=batch_size, collate_fn=keep_batch)


def log_normal(error):
    return -0.5 * (error / 2.0) ** 2 - math.log(2.0) - 0.5 * math.log(2.0 * math.pi)


@pytest.mark.parametrize("epoch", [0, 3, 5])
def test_the_bound_by_hand(epoch, monkeypatch):
    module = make(kl_wait_epochs=3, kl_gamma=0.9, likelihood_weight=0.5)
    monkeypatch.setattr(LatentODEModule, "current_epoch", epoch)
    found = module.evaluate(series())
    weight = {0: 0.0, 3: 0.0, 5: 1.0 - 0.81}[epoch]
    draws = [log_normal(1.0), log_normal(3.0)]
    evidence = math.log((math.exp(draws[0]) + math.exp(draws[1])) / 2.0)
    assert found["kl_weight"].item() == pytest.approx(weight)
    assert found["kl"].item() == pytest.approx(2.0)  # a mean of 2 and a standard deviation of 1
    assert found["log_likelihood"].item() == pytest.approx(sum(draws) / 2.0)
    assert found["mse"].item() == pytest.approx((1.0 + 9.0) / 2.0)
    assert found["loss"].item() == pytest.approx(-0.5 * (evidence - weight * 2.0))


def test_the_likelihood_of_an_ode_rnn_by_hand():
    class Single(Known):
        def forward(self, batch):
            forecast = super().forward(batch)
            return forecast._replace(mean=forecast.mean[:1])

    found = ODERNNModule(Single(), noise_std=2.0).evaluate(series())
    assert set(found) == {"loss", "log_likelihood", "mse"}
    assert found["loss"].item() == pytest.approx(-log_normal(1.0))
    assert found["mse"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [OF_SERIES, OF_TIMES], ids=["series", "times"])
def test_cross_entropy_by_hand(labels):
    batch = series(labels)
    module = make(classifier=nn.Identity(), classification_weight=100.0)
    found = module.evaluate(batch)
    if labels is OF_SERIES:
        states, known = batch.values[:, 0], batch.labels
    else:
        known_at = batch.labels >= 0
        states, known = batch.values[known_at], batch.labels[known_at]
    logits = states * torch.tensor([1.0, -1.0])
    expected = F.cross_entropy(logits, known)
    torch.testing.assert_close(found["cross_entropy"], expected)
    torch.testing.assert_close(found["accuracy"], (logits.argmax(1) == known).float().mean())
    torch.testing.assert_close(found["loss"], make().evaluate(batch)["loss"] + 100.0 * expected)


def test_series_without_a_label_cost_nothing():
    batch = series([torch.full((n,), -1) for n in (3, 2, 1)])
    assert make(classifier=nn.Identity()).evaluate(batch)["cross_entropy"].item() == 0.0


def test_a_batch_without_a_target_or_a_label_has_no_mean_of_them():
    batch = series([torch.tensor(-1)] * 3)
    batch = batch._replace(target_mask=torch.zeros_like(batch.target_mask))
    found = make(classifier=nn.Linear(N_STATES, 2)).evaluate(batch)
    assert not {"mse", "accuracy"} & found.keys()
    assert all(value.isfinite() for value in found.values())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_evaluation_does_not_depend_on_the_batches(trainer, batch_size):
    batch = series(OF_TIMES)
    module = make(classifier=nn.Identity())
    (found,) = trainer.test(module, loader(batch, batch_size), verbose=False)
    whole = module.evaluate(batch)
    assert set(found) == {
        f"test/{name}"
        for name in ("log_likelihood", "kl", "mse", "cross_entropy", "accuracy", "auc")
    }
    for name in ("log_likelihood", "kl", "mse", "cross_entropy", "accuracy"):
        assert found[f"test/{name}"] == pytest.approx(whole[name].item(), rel=1e-5), name
    # States of class 1: 2 and -1, of class 0: 1, 4 and 1; p(1) falls with the state.
    assert found["test/auc"] == pytest.approx((1 + 3) / 6)


def test_the_area_is_not_defined_for_one_class(trainer):
    module = make(classifier=nn.Identity())
    batch = series([torch.tensor(1)] * 3)
    with pytest.warns(UserWarning, match=r"the 3 there are have \[1\]: it is not defined"):
        (found,) = trainer.test(module, loader(batch, 2), verbose=False)
    assert math.isnan(found["test/auc"])
    assert found["test/accuracy"] == pytest.approx(1 / 3)  # of the states 1, -1 and 1


def test_the_area_of_two_classes():
    area = DefinedAUROC()
    area.update(torch.tensor([0.1, 0.8]), torch.tensor([0, 1]))
    area.update(torch.tensor([0.4, 0.3]), torch.tensor([0, 1]))
    assert area.compute().item() == pytest.approx(3 / 4)


def test_a_model_that_gives_nan_has_neither_accuracy_nor_area(trainer):
    batch = series(OF_SERIES)
    batch.values[0] = torch.nan
    module = make(classifier=nn.Identity())
    module.check_batch = lambda batch: None  # which refuses such values: here the model gives them
    (found,) = trainer.test(module, loader(batch, 2), verbose=False)
    assert math.isnan(found["test/accuracy"])
    assert math.isnan(found["test/auc"])


@pytest.mark.parametrize("known", [0, 1])
def test_batches_without_a_label_count_for_nothing(trainer, known):
    labels = [torch.tensor(x) for x in (-1, -1, 1 if known else -1)]
    data = loader(series(labels), 2)
    with pytest.warns(UserWarning, match=f"the {known} there are have"):
        (found,) = trainer.test(make(classifier=nn.Identity()), data, verbose=False)
    assert found["test/cross_entropy"] >= 0.0 if known else math.isnan(found["test/cross_entropy"])
    assert found["test/accuracy"] == 0.0 if known else math.isnan(found["test/accuracy"])
    assert math.isnan(found["test/auc"])


def test_predictions_are_means_over_the_draws(trainer):
    batch = series(OF_TIMES)
    (found,) = trainer.predict(make(classifier=nn.Identity()), loader(batch, 3))
    assert set(found) == {"times", "lengths", "mean", "std", "probabilities"}
    torch.testing.assert_close(found["mean"], batch.values + 2.0)
    torch.testing.assert_close(found["std"], torch.ones_like(batch.values))
    torch.testing.assert_close(found["probabilities"].sum(2), torch.ones(3, 3))
    assert torch.equal(found["times"], batch.times)


def test_without_a_likelihood_nothing_is_reconstructed(trainer):
    module = make(likelihood_weight=0.0, classifier=nn.Linear(2, 3), num_classes=3)
    batch = series([torch.tensor(x) for x in (0, 2, 1)])
    assert set(module.evaluate(batch)) == {"loss", "cross_entropy", "accuracy"}
    assert not any(p.requires_grad for p in module.network.readout.parameters())
    (found,) = trainer.predict(module, loader(batch, 3))
    assert set(found) == {"times", "lengths", "probabilities"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_std": 0.0}, r"noise_std > 0 and weights >= 0, but got noise_std = 0.0"),
        ({"likelihood_weight": -1.0}, r"likelihood_weight = -1.0"),
        ({"classification_weight": -1.0}, r"classification_weight = -1.0"),
        ({"likelihood_weight": 0.0}, r"something to learn, but got likelihood_weight = 0 and no"),
        ({"n_draws": 0}, r"n_draws >= 1, kl_wait_epochs >= 0 and kl_gamma in \[0, 1\), but got 0"),
        ({"kl_wait_epochs": -1}, r"kl_wait_epochs >= 0 and kl_gamma in \[0, 1\), but got 3, -1"),
        ({"kl_gamma": 1.0}, r"kl_gamma in \[0, 1\), but got 3, 10 and 1.0"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentODEModule(Known(), **arguments)


def changed(*names, by):
    """A batch of series with some of its parts changed."""
    batch = series()
    return batch._replace(**{name: by(getattr(batch, name)) for name in names})


UNSEEN = torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            changed("times", by=lambda t: t.flip(1)),
            "Expected strictly increasing times, but not so in sample 0",
        ),
        (changed("values", by=lambda x: x * torch.nan), "Expected finite values"),
        (changed("mask", by=lambda m: m * UNSEEN), "at least one observation in every sample"),
        (
            changed("values", "mask", "target_mask", by=lambda x: x.repeat(1, 1, 2)),
            "Expected series of n_features = 1, but got 2",
        ),
        (
            series([torch.tensor(2)] * 3),
            "labels below num_classes = 2, -1 where there is none, but got 2 to 2",
        ),
        (series(), "Expected labels, as the model has a classifier, but the data has none"),
    ],
)
def test_a_bad_first_batch_raises(trainer, stage, batch, message):
    module = make(classifier=nn.Identity())
    with pytest.raises(ValueError, match=message):
        getattr(trainer, stage)(module, loader(batch, 3))


@pytest.mark.parametrize("n_logits", [1, 3])
def test_a_classifier_of_other_classes_is_refused(trainer, n_logits):
    module = make(classifier=nn.Linear(2, n_logits))
    batch = series([torch.tensor(x) for x in (0, 1, 1)])
    with pytest.raises(ValueError, match=f"num_classes = 2 logits .*, but got {n_logits}"):
        trainer.validate(module, loader(batch, 3))


def test_a_batch_of_something_else_raises(trainer):
    data = DataLoader([torch.zeros(2)])
    with pytest.raises(TypeError, match="Expected a SeriesBatch, but got Tensor"):
        trainer.validate(make(), data)
