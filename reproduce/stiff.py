"""Figures 4 and 5: the stiff ODE."""

from collections.abc import Callable

from matplotlib.figure import Figure

from reproduce.experiments import (
    DATA,
    MODEL,
    SMOKE,
    SMOKE_CUT,
    TRAINER,
    Comparison,
    Experiment,
    Metric,
    Scale,
    compare,
    options,
    pick,
)
from reproduce.figures import draw_stiffness, draw_trajectories
from reproduce.records import Results

SETTINGS = {
    "as released": "stiff/chapra_released",
    "true times": "stiff/chapra",
    "starts in the transient": "stiff/chapra_transient",
}
METRICS = (
    Metric("val/mse_min", "minimum MSE over the checks", "lower", ratio=True),
    Metric("val/mse_median", "median MSE of the last 25 checks", "lower", ratio=True),
    Metric("test/mse", "final MSE", "lower", ratio=True),
)
NOTES = (
    "Three settings: *as released*, where the network is given the time since the start of each "
    "piece; *true times*, as the equation says; *starts in the transient*, true times with start "
    "times drawn uniformly in the logarithm, so that some lie where the equation is stiff. The "
    "minimum is chosen on the test trajectory, as in the paper; the median and the final value "
    "are not.",
)


def _comparison(setting: str, r: int, scale: Scale) -> Comparison:
    # Epochs of 50 iterations in place of max_steps, with which Lightning does not go on exactly.
    overrides = (
        f"{DATA}.r={r}.0",
        *options(TRAINER, max_steps=-1, max_epochs=pick(scale, 60, 20, 1)),
    )
    if scale == "smoke":
        overrides += (
            *SMOKE,
            f"{MODEL}.vector_field.init_args.hidden=[8]",
            *options(DATA, n_starts=8, batch_size=4, n_test=5),
        )
    paper = ("3.87", "0.52") if (setting, r) == ("as released", 1000) else ()
    name = f"{setting}, r = {r}"
    return compare(name, SETTINGS[setting], overrides, (0.124,), paper, weights="last")


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
        comparisons=tuple(
            _comparison(setting, r, scale)
            for setting in [*SETTINGS][pick(scale, 0, 0, 2) :]
            for r in rates
        ),
        metrics=METRICS,
        cut=pick(
            scale,
            "The configs as they are: 3,000 iterations, two hidden layers of 500.",
            "1,000 of 3,000 iterations, fewer values of r.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 5, 2, 1),
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
    rates = pick(scale, (10, 32, 100, 316, 1000), (10, 100, 1000), (1000,))
    return _experiment("figure5", title, rates, scale, draw_stiffness)
