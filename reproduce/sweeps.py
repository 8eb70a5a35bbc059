"""How metric and evaluations depend on b; no table of the paper."""

from reproduce import classifiers
from reproduce.experiments import Arm, Comparison, Experiment, Metric, Scale, steer
from reproduce.figures import draw_against_b
from reproduce.flows import toy2d_overrides

WIDTHS: dict[Scale, tuple[float, ...]] = {
    "paper": (0.1, 0.25, 0.5, 0.75, 0.9, 0.99),
    "short": (0.1, 0.25, 0.5, 0.75, 0.9, 0.99),
    "smoke": (0.5,),
}


def sweep_b_flow(scale: Scale) -> Experiment:
    """The flow on eight Gaussians."""
    overrides = toy2d_overrides(scale)
    others = [Arm(f"b = {b:g}", "cnf/toy2d", overrides + steer(b)) for b in WIDTHS[scale]]
    metrics = (
        Metric("test/nll", "test negative log-likelihood, nats", "lower"),
        Metric("test/nfe_forward", "NFE of a test batch", "lower", digits=1),
    )
    baseline = Arm("b = 0", "cnf/toy2d", overrides)
    return _sweep("sweep_b_flow", "the flow on eight Gaussians", baseline, others, metrics, scale)


def sweep_b_classifier(scale: Scale) -> Experiment:
    """The NODE on MNIST."""
    others = []
    for b in WIDTHS[scale]:
        found = classifiers.arm("MNIST", "NODE", scale, b == 0.99, () if b == 0.99 else steer(b))
        others.append(Arm(f"b = {b:g}", found.config, found.overrides))
    metrics = (
        Metric("test/accuracy", "test accuracy, %", "higher", 100.0, 2),
        Metric("test/nfe_forward", "NFE of a test batch", "lower", digits=1),
    )
    found = classifiers.arm("MNIST", "NODE", scale, False)
    baseline = Arm("b = 0", found.config, found.overrides)
    return _sweep("sweep_b_classifier", "the NODE on MNIST", baseline, others, metrics, scale)


def _sweep(
    name: str,
    what: str,
    baseline: Arm,
    others: list[Arm],
    metrics: tuple[Metric, ...],
    scale: Scale,
) -> Experiment:
    return Experiment(
        name=name,
        title=f"Metric and evaluations against b: {what}",
        comparisons=(Comparison(what, baseline, tuple(others)),),
        metrics=metrics,
        cut=f"The settings of `{'table5' if 'class' in name else 'figure1'}` at this scale.",
        seeds={"paper": 3, "short": 2, "smoke": 1}[scale],
        draw=draw_against_b,
        notes=("The paper has no such sweep.",),
    )
