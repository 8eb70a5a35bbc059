"""Base class of tasks on irregular series: losses, metrics, checks of a batch."""

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import BinaryAUROC
from torchmetrics.utilities.data import dim_zero_cat

from steer_lightning.modules.base import correct, mean_with_nan
from steer_lightning.modules.stochastic import StochasticTaskModule
from steer_lightning.nn.likelihood import masked_gaussian_log_prob
from steer_lightning.nn.series import SeriesBatch, check_series
from steer_lightning.nn.series.forecaster import Forecast
from steer_lightning.utils.processes import in_process_group


class DefinedAUROC(BinaryAUROC):
    """Area under the receiver operating curve; NaN, with a warning, where it is not defined."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """The area, or NaN if all labels are the same or a score is NaN."""
        scores, labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        if len(found := {*labels.tolist()}) < 2:
            rank_zero_warn(
                f"Expected both labels for the area under the curve, but the {len(labels)} there "
                f"are have {[*found]}: it is not defined, and NaN is logged. Evaluate on "
                f"more series."
            )
        elif bool(scores.isfinite().all()):
            return super().compute()
        return torch.tensor(torch.nan, device=labels.device)


class SeriesModule(StochasticTaskModule):
    """Base of tasks on irregular series: predict values, classify, or both.

    A batch is a :class:`~steer_lightning.nn.series.SeriesBatch`; the first of every epoch is
    checked against its contract. Subclasses give a forecast and the terms of its likelihood.

    Args:
        network: Makes forecasts, with the attribute ``n_features``.
        noise_std: Standard deviation of the observation noise, in units of the values.
        likelihood_weight: Weight of the likelihood in the loss; zero to classify only, in which
            case the readout of values is not trained, though a decoder still solves.
        classifier: Maps states to ``num_classes`` logits; ``None`` if nothing is classified. It
            reads the state at each time, or that of a series, as the labels of the data are.
        num_classes: Number of classes; with two of them the area under the curve is logged too.
        classification_weight: Weight of the cross-entropy in the loss.
        **optimization: See :class:`~steer_lightning.modules.base.TaskModule`.

    Raises:
        ValueError: If a number is out of range or there is nothing to learn; with the first
            batch, if it breaks the contract or has other features or labels than the model.
    """

    logged: tuple[str, ...] = ("log_likelihood",)

    def __init__(
        self,
        network: nn.Module,
        noise_std: float = 0.01,
        likelihood_weight: float = 1.0,
        classifier: nn.Module | None = None,
        num_classes: int = 2,
        classification_weight: float = 1.0,
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        if not noise_std > 0 or likelihood_weight < 0 or classification_weight < 0:
            raise ValueError(
                f"Expected noise_std > 0 and weights >= 0, but got noise_std = {noise_std}, "
                f"likelihood_weight = {likelihood_weight} and classification_weight = "
                f"{classification_weight}."
            )
        if likelihood_weight == 0 and (classifier is None or classification_weight == 0):
            raise ValueError(
                "Expected something to learn, but got likelihood_weight = 0 and no weighted "
                "classifier. Give a `classifier`, or a likelihood_weight > 0."
            )
        self.network = network
        self.noise_std = noise_std
        self.likelihood_weight = likelihood_weight
        self.classifier = classifier
        self.num_classes = num_classes
        self.classification_weight = classification_weight
        metrics: dict[str, Metric] = {}
        if likelihood_weight > 0:
            metrics |= {name: mean_with_nan() for name in self.logged}
            metrics["mse"] = MeanSquaredError()
        elif isinstance(readout := getattr(network, "readout", None), nn.Module):
            readout.requires_grad_(False)  # DDP waits for gradients that never come
        if classifier is not None:
            metrics["cross_entropy"] = mean_with_nan()
            metrics["accuracy"] = mean_with_nan()
            if num_classes == 2:
                metrics["auc"] = DefinedAUROC()
        self.add_metrics(metrics)

    def forecast(self, batch: SeriesBatch, generator: torch.Generator) -> Forecast:
        """Predictions of a batch."""
        raise NotImplementedError

    def likelihood(self, forecast: Forecast) -> tuple[Tensor, dict[str, Tensor]]:
        """Bound to maximise and terms to log, each with one number for each sample."""
        raise NotImplementedError

    def log_likelihood(self, forecast: Forecast) -> Tensor:
        """Gaussian log-density of the targets in each draw, shape ``(S, B)``."""
        batch = forecast.batch
        return masked_gaussian_log_prob(
            batch.values, forecast.mean, self.noise_std, batch.target_mask
        )

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Loss, its terms, squared error and accuracy of a batch."""
        return self._metrics(self.forecast(batch, self.noise_stream("evaluate", 0)))

    def loss_weight(self, batch: Any) -> Tensor | None:
        """Number of labels, of which the cross-entropy is a mean; the rest is one of series."""
        return None if self.classifier is None else (batch.labels >= 0).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        forecast = self.forecast(batch, self.next_training_stream())
        metrics = self._metrics(forecast, self.rank_share)
        size = len(batch.times)
        self.log("train/loss", metrics["loss"], prog_bar=True, batch_size=size)
        rest = {f"train/{k}": v for k, v in metrics.items() if k != "loss"}
        self.log_dict(rest, batch_size=size)
        loss = metrics["loss"]
        if in_process_group():
            # DDP waits for all gradients, also where a batch needs no decoder: its labels are
            # those of series, or each of its series has a single time.
            loss = loss + sum(p.flatten()[:0].sum() for p in self.parameters() if p.requires_grad)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Predict at the times asked for: mean and standard deviation over the draws.

        Returns:
            ``times (B, T)`` and ``lengths (B,)``; ``mean`` and ``std``, each ``(B, T, D)``, if
            values are predicted; ``probabilities (B, C)`` or ``(B, T, C)`` if there is a
            classifier.
        """
        forecast = self.forecast(batch, self.noise_stream("predict", batch_idx))
        found = {"times": forecast.batch.times, "lengths": forecast.batch.lengths}
        if self.likelihood_weight > 0:
            found["mean"] = forecast.mean.mean(0)
            found["std"] = forecast.mean.std(0, correction=0)
        if self.classifier is not None:
            found["probabilities"] = self._logits(forecast).softmax(-1).mean(0)
        return found

    def _metrics(self, forecast: Forecast, label_share: Tensor | None = None) -> dict[str, Tensor]:
        loss = forecast.mean.new_zeros(())
        found = {}
        if self.likelihood_weight > 0:
            bound, terms = self.likelihood(forecast)
            loss = loss - self.likelihood_weight * bound.mean()
            found = {name: term.mean() for name, term in terms.items()}
            predicted, values = _target_pairs(forecast)
            if len(values):  # a batch may have no target, and no label
                found["mse"] = F.mse_loss(predicted, values)
        if self.classifier is not None:
            logits, labels = self._logits(forecast), forecast.batch.labels
            found["cross_entropy"] = cross_entropy = _cross_entropy(logits, labels)
            if label_share is not None:
                cross_entropy = label_share.to(loss) * cross_entropy
            loss = loss + self.classification_weight * cross_entropy
            right = correct(logits.softmax(-1).mean(0), labels)[labels >= 0]
            if len(right):
                found["accuracy"] = right.mean()
        return {"loss": loss, **found}

    def evaluation_step(self, stage: str, batch: SeriesBatch, batch_idx: int) -> None:
        forecast = self.forecast(batch, self.noise_stream(stage, batch_idx))
        if self.likelihood_weight > 0:
            _, terms = self.likelihood(forecast)
            for name in self.logged:
                self.update_metric(stage, name, terms[name])
            self.update_metric(stage, "mse", *_target_pairs(forecast), prog_bar=True)
        if self.classifier is None:
            return
        logits, labels = self._logits(forecast), forecast.batch.labels
        known, cross_entropy = labels >= 0, _cross_entropy(logits, labels)
        p, labels = logits.softmax(-1).mean(0)[known], labels[known]
        self.update_metric(stage, "cross_entropy", cross_entropy, known.sum())
        self.update_metric(stage, "accuracy", correct(p, labels), prog_bar=True)
        if self.num_classes == 2:
            self.update_metric(stage, "auc", p[:, 1], labels, prog_bar=True)

    def _logits(self, forecast: Forecast) -> Tensor:
        """Logits of each draw, shape ``(S, B, C)``, or ``(S, B, T, C)`` if times have labels."""
        assert self.classifier is not None
        of_times = forecast.batch.labels.ndim == 2
        logits: Tensor = self.classifier(forecast.along if of_times else forecast.whole)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"Expected num_classes = {self.num_classes} logits of the classifier, but got "
                f"{logits.shape[-1]}. Make its last layer as wide as there are classes."
            )
        return logits

    def check_batch(self, batch: Any) -> None:
        """Raise a ``ValueError`` unless a batch keeps its contract and fits the model."""
        check_series(batch)
        n_features = self.network.n_features
        if batch.values.shape[2] != n_features:
            raise ValueError(
                f"Expected series of n_features = {n_features}, but got {batch.values.shape[2]}. "
                f"Give the network as many features as the data has."
            )
        if self.classifier is None:
            return
        labels = batch.labels
        if labels.shape[1:] == (0,):
            raise ValueError(
                "Expected labels, as the model has a classifier, but the data has none. Leave "
                "`classifier` out, or, to predict, give labels of -1: (B,) or (B, T)."
            )
        low, high = (int(end) for end in labels.aminmax())
        if low < -1 or high >= self.num_classes:
            raise ValueError(
                f"Expected labels below num_classes = {self.num_classes}, -1 where there is none, "
                f"but got {low} to {high}. Give the model as many classes as the data has."
            )


def _target_pairs(forecast: Forecast) -> tuple[Tensor, Tensor]:
    """Predicted and true values of every draw, where a value is a target, flat."""
    batch = forecast.batch
    wanted = (batch.target_mask > 0).expand_as(forecast.mean)
    return forecast.mean[wanted], batch.values.expand_as(forecast.mean)[wanted]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over draws and labels, in nats; zero if nothing has a label."""
    repeated = labels.expand(logits.shape[:-1])
    total = F.cross_entropy(
        logits.flatten(0, -2), repeated.flatten(), ignore_index=-1, reduction="sum"
    )
    return total / (repeated >= 0).sum().clamp(min=1)
