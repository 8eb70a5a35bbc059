"""Figures 4 and 5: the stiff ODE."""

from collections.abc import Callable

from matplotlib.figure import Figure

from reproduce.experiments import (
    DATA,
    MODEL,
    SMOKE,
    TRAINER,
    Arm,
    Comparison,
    Experiment,
    Metric,
    Results,
    Scale,
    steer,
)
from reproduce.figures import draw_stiffness, draw_trajectories

SETTINGS = {
    "as released": "stiff/chapra_released",
    "true times": "stiff/chapra",
    "starts in the transient": "stiff/chapra_transient",
}
RATES: dict[Scale, tuple[int, ...]] = {
    "paper": (10, 32, 100, 316, 1000),
    "short": (10, 100, 1000),
    "smoke": (1000,),
}
METRICS = (
    Metric("val/mse_min", "minimum MSE over the checks", "lower", ratio=True),
    Metric("val/mse_median", "median MSE of the last 25 checks", "lower", ratio=True),
    Metric("test/mse", "final MSE", "lower", ratio=True),
)
CUTS = {
    "paper": "The configs as they are: 3,000 iterations, two hidden layers of 500.",
    "short": "1,000 of 3,000 iterations, fewer values of r.",
    "smoke": "Two iterations of eight units: that it runs, and nothing else.",
}
NOTES = (
    "Three settings: *as released*, where the network is given the time since the start of each "
    "piece; *true times*, as the equation says; *starts in the transient*, true times with start "
    "times drawn uniformly in the logarithm, so that some lie where the equation is stiff. The "
    "minimum is chosen on the test trajectory, as in the paper; the median and the final value "
    "are not.",
)


def _comparison(setting: str, r: int, scale: Scale) -> Comparison:
    # Epochs of 50 iterations in place of max_steps, with which Lightning does not go on exactly.
    epochs = {"paper": 60, "short": 20, "smoke": 1}[scale]
    overrides: tuple[str, ...] = (
        f"{DATA}.r={r}.0",
        f"{TRAINER}.max_steps=-1",
        f"{TRAINER}.max_epochs={epochs}",
    )
    if scale == "smoke":
        overrides += (
            *SMOKE,
            f"{MODEL}.vector_field.init_args.hidden=[8]",
            f"{DATA}.n_starts=8",
            f"{DATA}.batch_size=4",
            f"{DATA}.n_test=5",
        )
    paper = ("3.87", "0.52") if (setting, r) == ("as released", 1000) else ("", "")
    config = SETTINGS[setting]
    baseline = Arm("without", config, overrides, paper[0], weights="last")
    steered = overrides + steer(0.124)
    other = Arm("STEER, b = 0.124", config, steered, paper[1], weights="last")
    return Comparison(f"{setting}, r = {r}", baseline, (other,))


def _experiment(
    name: str,
    title: str,
    rates: tuple[int, ...],
    scale: Scale,
    draw: Callable[[Experiment, Results], Figure],
) -> Experiment:
    return Experiment(
        name=name,
        title=title,
        comparisons=tuple(_comparison(s, r, scale) for s in SETTINGS for r in rates),
        metrics=METRICS,
        cut=CUTS[scale],
        seeds={"paper": 5, "short": 2, "smoke": 1}[scale],
        draw=draw,
        notes=NOTES,
    )


def figure4(scale: Scale) -> Experiment:
    """Trajectories at r = 1000, from the runs of Figure 5."""
    title = "Figure 4: trajectories of the stiff ODE at r = 1000"
    return _experiment("figure4", title, (1000,), scale, draw_trajectories)


def figure5(scale: Scale) -> Experiment:
    """Errors against the stiffness ratio."""
    title = "Figure 5: the stiff ODE, mean squared error against the stiffness ratio r"
    return _experiment("figure5", title, RATES[scale], scale, draw_stiffness)
