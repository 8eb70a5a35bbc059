"""Metric and evaluations against b; no table of the paper."""

from dataclasses import replace

from reproduce.classifiers import classifier
from reproduce.experiments import Comparison, Experiment, Metric, Scale, pick
from reproduce.figures import draw_against_b
from reproduce.flows import toy2d


def _widths(scale: Scale) -> tuple[float, ...]:
    many = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    return pick(scale, many, many, (0.5,))


def sweep_b_flow(scale: Scale) -> Experiment:
    """The flow on eight Gaussians."""
    metric = Metric("test/nll", "test negative log-likelihood, nats", "lower")
    part = toy2d(scale, widths=_widths(scale))
    return _sweep("sweep_b_flow", "the flow on eight Gaussians", "figure1", part, metric, scale)


def sweep_b_classifier(scale: Scale) -> Experiment:
    """The NODE on MNIST."""
    metric = Metric("test/accuracy", "test accuracy, %", "higher", 100.0, 2)
    part = classifier("MNIST", "NODE", scale, _widths(scale))
    return _sweep("sweep_b_classifier", "the NODE on MNIST", "table5", part, metric, scale)


def _sweep(
    name: str, what: str, whose: str, part: Comparison, metric: Metric, scale: Scale
) -> Experiment:
    others = tuple(replace(v, label=v.label.removeprefix("STEER, ")) for v in part.others)
    return Experiment(
        name=name,
        title=f"Metric and evaluations against b: {what}",
        comparisons=(Comparison(what, replace(part.baseline, label="b = 0"), others),),
        metrics=(metric, Metric("test/nfe_forward", "NFE of a test batch", "lower", digits=1)),
        cut=f"The settings of `{whose}` at this scale.",
        seeds=pick(scale, 3, 2, 1),
        draw=draw_against_b,
        notes=("The paper has no such sweep.",),
    )
