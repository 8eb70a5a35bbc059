"""STEER beside its controls and its rivals: the same model, at one tolerance a task."""

import json
from collections.abc import Iterator

from reproduce.arguments import DATA, FLOW, MODEL, SMOKE, TRAINER, decaying, options
from reproduce.catalogue.flows import SMOKE_TOY
from reproduce.catalogue.series import SMOKE_SERIES
from reproduce.experiments import Comparison, Metric, Scale, compare, experiment, pick
from reproduce.figures import draw_pareto
from reproduce.pareto import write_tables

TASKS = ("toy2d", "mnist_node_small", "mnist_node_mlp", "physionet")
B = 0.5

# Options below `--penalties` and three weights, a decade apart.
PENALTIES = {
    "kinetic energy": ("kinetic_energy", (0.01, 0.1, 1.0)),
    "Jacobian norm": ("jacobian_norm", (0.01, 0.1, 1.0)),
    "acceleration": ("acceleration", (0.1, 1.0, 10.0)),
    "local error of the steps": ("local_error", (1.0, 10.0, 100.0)),
    "local error of one step": ("local_error", (1.0, 10.0, 100.0)),
    "local error of one step, slope held": ("local_error", (1.0, 10.0, 100.0)),
    "stiffness": ("stiffness", (0.01, 0.1, 1.0)),
    "trajectory polynomial": ("trajectory_polynomial", (0.5, 5.0, 50.0)),
}
WITH_STEER = "acceleration"  # chosen before anything was run here


def controls(block: str, n_steps: int) -> dict[str, tuple[str, ...]]:
    """Labels and arguments of STEER and its controls, for a block over [0, 1]."""
    steer = f"--steer.b={B}"
    return {
        f"STEER, b = {B}": (steer,),
        "STEER, evaluated at t1 - b": (steer, f"{block}.eval_end_time={1.0 - B}"),
        "STEER, b decaying to 0": decaying(n_steps, start=B, end=0.0),
        "fixed end time t1 - b": (f"{block}.t_span=[0.0,{1.0 - B}]",),
        "learned t1": options(block, learn_t1="true", t1_range=f"[{1.0 - B},{1.0 + B}]"),
    }


def rivals(
    tolerances: tuple[float, float], steer: str, middle: bool = False, factor: float = 1.0
) -> dict[str, tuple[str, ...]]:
    """Labels and arguments of the penalties, and of one of them together with STEER.

    ``middle`` leaves the middle one of three weights; ``factor`` multiplies them, for a loss in
    other units.
    """
    found = {}
    rtol, atol = tolerances
    for name, (option, values) in PENALTIES.items():
        settings: dict[str, object] = {}
        if name.startswith("local error of one step"):
            settings = {"form": "one_step", "rtol": rtol, "atol": atol}
            settings |= {"hold_slope": "true"} if "held" in name else {}
        for value in values[1:2] if middle else values:
            weight = factor * value
            found[f"{name}, weight {weight:g}"] = options(
                f"--penalties.{option}", weight=weight, **settings
            )
    together = {
        f"STEER and {label}": (steer, *arguments)
        for label, arguments in found.items()
        if label.startswith(f"{WITH_STEER},")
    }
    return found | together


def metrics(
    first: Metric, nfe: str = "test/nfe_forward", sweep: bool = True
) -> tuple[Metric, ...]:
    """The columns of a table; ``first`` is the metric at t1."""
    name, worst = first.key.removeprefix("test/"), "min" if first.better == "higher" else "max"
    over = Metric(
        f"sweep/{name}@{worst}", "worst, T in [0.5, 1.5]", first.better, first.factor, first.digits
    )
    return (
        first,
        *([over] if sweep else []),
        Metric(nfe, "NFE of a test batch", "lower", digits=1, ratio=True),
        Metric("train/seconds", "training, s", "lower", digits=0, ratio=True),
        Metric("train/nfe", "NFE in training", "lower", digits=0, ratio=True),
    )


_NOTES = (
    "Penalties have the same three weights on each task but PhysioNet. STEER goes together with "
    f"the {WITH_STEER}, chosen before anything was run. The controls of STEER: the end time "
    "fixed at t1 - b; training on T ~ U(t1 - b, t1 + b), evaluation at t1 - b; b falling linearly "
    "to 0 over the first 70 % of the steps; t1 learned in [0.5, 1.5]. A column `at t1` is each "
    "model's own end of evaluation.",
    "*Slope held*: the local error of one step as the code released with LRNDE has it, with a "
    "gradient that is not the value's.",
    "Nobody has published this comparison.",
)
_ROOM = "steer_lightning.callbacks"
_CALLBACKS = [
    {"class_path": f"{_ROOM}.NFEMonitor"},
    {"class_path": f"{_ROOM}.EndTimeSweep", "init_args": {"b": B, "t1": 1.0, "n_batches": 2}},
]
# What every model of a task is tested with: evaluations, and one range of T.
_WATCH = f"{TRAINER}.callbacks={json.dumps(_CALLBACKS)}"


@experiment(
    "STEER, its controls and its rivals: flows in two dimensions",
    metrics(Metric("test/nll", "NLL at t1, nats", "lower", matters=0.02)),
    (
        "Eight Gaussians: 3,000 steps of batch 256; the other densities shorter: 1,500 steps, and "
        "the middle one of three weights. A cosine from the config's rate to 0. dopri5 at 1e-5.",
        "Eight Gaussians: 500 steps of batch 128; the other densities shorter: 200 steps, and the "
        "middle one of three weights. A cosine from the config's rate to 0. dopri5 at 1e-5.",
    ),
    (3, 3),
    draw_pareto,
    _NOTES,
    write_tables,
)
def regularizers_toy2d(scale: Scale) -> Iterator[Comparison]:
    """Three densities, the first one in full."""
    per_epoch, batch = pick(scale, (100, 256), (100, 128), (2, 4))
    for density, long, short in (("8gaussians", 30, 5), ("pinwheel", 15, 2), ("moons", 15, 2)):
        n_epochs = pick(scale, long, short, 1)
        n_steps = per_epoch * n_epochs
        middle = density != "8gaussians" or scale == "smoke"
        schedule = f"{MODEL}.lr_scheduler"
        overrides = (
            _WATCH,
            *options(TRAINER, max_epochs=n_epochs),
            *options(DATA, name=density, n_train=per_epoch * batch, batch_size=batch),
            f"{schedule}=torch.optim.lr_scheduler.CosineAnnealingLR",
            f"{schedule}.init_args.T_max={n_steps}",
            f"{MODEL}.lr_interval=step",
            *pick(scale, (), (), SMOKE_TOY),
        )
        others = controls(FLOW, n_steps)
        others |= rivals((1e-5, 1e-5), f"--steer.b={B}", middle)
        yield compare(density, "cnf/toy2d", overrides, others, weights="last")
        if scale == "smoke":
            return


def _classifier(
    scale: Scale, name: str, n_steps: int, tolerance: float, *overrides: str
) -> Iterator[Comparison]:
    few = options(DATA, val_size=10, batch_size=4, eval_batch_size=4)
    overrides = (_WATCH, *overrides, *pick(scale, (), (), (*SMOKE, *few)))
    others = controls(f"{MODEL}.block.init_args", n_steps)
    others |= rivals((tolerance, tolerance), f"--steer.b={B}")
    if scale == "smoke":  # the flow runs all of them
        names = ("STEER, evaluated at t1 - b", "learned t1", "STEER and acceleration, weight 1")
        others = {name: others[name] for name in names}
    yield compare("MNIST", f"classifier/{name}", overrides, others, weights="last")


_ACCURACY = Metric("test/accuracy", "accuracy at t1, %", "higher", 100.0, 2, matters=0.2)


@experiment(
    "STEER, its controls and its rivals: a small convolutional NODE on MNIST",
    metrics(_ACCURACY),
    (
        "Three epochs of the config: 4 x 14 x 14, 32 filters; dopri5 at 1e-3.",
        "300 batches of 64 (a third of an epoch) of 4 x 14 x 14, 32 filters; dopri5 at 1e-3.",
    ),
    (3, 3),
    draw_pareto,
    _NOTES,
    write_tables,
)
def regularizers_mnist_node_small(scale: Scale) -> Iterator[Comparison]:
    """The small NODE of the classifiers' page."""
    cut = options(TRAINER, max_epochs=1, limit_train_batches=300, limit_val_batches=1)
    changes = pick(scale, options(TRAINER, max_epochs=3), cut, ())
    return _classifier(scale, "mnist_node_small", pick(scale, 2580, 300, 2), 1e-3, *changes)


@experiment(
    "STEER, its controls and its rivals: the perceptron NODE of ERNODE and LRNDE on MNIST",
    metrics(_ACCURACY),
    (
        "The config as it is: 20 epochs of batch 512; dopri5 at 1e-6.",
        "Three epochs (324 steps) of batch 512; dopri5 at 1e-6.",
    ),
    (3, 3),
    draw_pareto,
    _NOTES,
    write_tables,
)
def regularizers_mnist_node_mlp(scale: Scale) -> Iterator[Comparison]:
    """The model on which the rivals were published."""
    changes = pick(scale, (), options(TRAINER, max_epochs=3), ())
    return _classifier(scale, "mnist_node_mlp", pick(scale, 2160, 324, 2), 1e-6, *changes)


@experiment(
    "STEER, its controls and its rivals: a latent ODE on PhysioNet 2012",
    metrics(
        Metric("test/auc", "test AUC", "higher", matters=0.01),
        "test/nfe_forward/network.decoder",
        sweep=False,
    ),
    (
        "The config as it is: 100 epochs; dopri5 at 1e-3 and 1e-4.",
        "6 of 100 epochs; dopri5 at 1e-3 and 1e-4.",
    ),
    (3, 2),
    draw_pareto,
    (
        "Penalties act on the decoder, whose evaluations in test are shown; the encoder takes "
        "Euler steps. STEER moves each interval, and of its controls one has a meaning on a grid "
        "of times: b falling exponentially, from 1e-3 (the whole of nine gaps in ten) to 1e-6 of "
        "the scaled time, over the first 70 % of the steps. Weights are 100 times those of the "
        "other tasks, as that of the cross-entropy is; with STEER goes the acceleration.",
        *_NOTES[1:],
    ),
    write_tables,
)
def regularizers_physionet(scale: Scale) -> Iterator[Comparison]:
    """Irregular series, where the solver is a part of the decoder alone."""
    n_epochs = pick(scale, 100, 6, 1)
    others = {
        "STEER, b = auto": ("--steer.b=auto",),
        "STEER, b decaying": decaying(58 * n_epochs, start=1e-3, end=1e-6, shape="exponential"),
        **rivals((1e-3, 1e-4), "--steer.b=auto", factor=100.0),
    }
    small = (*SMOKE_SERIES, *options(DATA, val_size=8, time_bin=1.0))
    overrides = pick(scale, (), options(TRAINER, max_epochs=n_epochs), small)
    if scale == "smoke":
        names = (
            "STEER, b decaying",
            "local error of the steps, weight 100",
            "stiffness, weight 10",
        )
        others = {name: others[name] for name in names}
    yield compare("PhysioNet", "latent_ode/physionet", overrides, others, weights="last")
