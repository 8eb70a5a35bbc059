"""Metric and evaluations against b, which the paper does not show."""

from collections.abc import Iterable, Iterator

from reproduce.arguments import widths
from reproduce.catalogue.classifiers import ACCURACY, CUTS, WORST, classifier
from reproduce.catalogue.flows import NLL, toy2d
from reproduce.experiments import Comparison, Metric, Scale, compare, experiment, pick
from reproduce.figures import draw_against_b

_NFE = Metric("test/nfe_forward", "NFE of a test batch", "lower", digits=1, matters=2.0)


def _sweep(scale: Scale, what: str, config: str, overrides: Iterable[str]) -> Iterator[Comparison]:
    many = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    others = widths(*pick(scale, many, many, (0.5,)), prefix="")
    yield compare(what, config, (*overrides,), others, baseline="b = 0")


@experiment(
    "Metric and evaluations against b: the flow on eight Gaussians",
    (NLL, Metric("sweep/nll@max", "the worst of T in [0.5, 1.5]", "lower", matters=0.02), _NFE),
    ("The settings of `figure1` at this scale.",) * 2,
    (3, 2),
    draw_against_b,
    ("The paper has no such sweep.",),
)
def sweep_b_flow(scale: Scale) -> Iterator[Comparison]:
    """The flow on eight Gaussians."""
    overrides = toy2d(scale, "8gaussians")
    return _sweep(scale, "the flow on eight Gaussians", "cnf/toy2d", overrides)


@experiment(
    "Metric and evaluations against b: the NODE on MNIST",
    (ACCURACY, WORST, _NFE),
    ("The settings of `table5` at this scale.",) * 2 + CUTS[2:],
    (3, 2),
    draw_against_b,
    ("The paper has no such sweep.",),
)
def sweep_b_classifier(scale: Scale) -> Iterator[Comparison]:
    """The NODE on MNIST."""
    return _sweep(scale, "the NODE on MNIST", *classifier(scale, "MNIST", "NODE"))
