"""Table 1, Figures 1 and 3: continuous normalizing flows."""

from reproduce.experiments import (
    DATA,
    FLOW,
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
from reproduce.figures import draw_curves, draw_flows

# Bits per dimension: none, STEER 0.5, STEER 0.25.
_PAPER = {
    ("MNIST", "FFJORD"): ("0.974", "0.974", "0.976"),
    ("MNIST", "RNODE"): ("0.973", "0.971", "0.972"),
    ("CIFAR-10", "FFJORD"): ("3.40", "3.40", "3.41"),
    ("CIFAR-10", "RNODE"): ("3.398", "3.397", "3.401"),
    ("ImageNet-32", "FFJORD"): ("3.96", "3.84", "3.87"),
    ("ImageNet-32", "RNODE"): ("2.36", "2.35", "2.37"),
}
_FIELD, _SOLVER = f"{FLOW}.vector_field.init_args", f"{FLOW}.solver.init_args"


def _images(data: str, model: str, scale: Scale) -> Comparison:
    name = data.lower().replace("-", "")
    if data == "MNIST" and scale != "paper":
        name += "_small"
    short = (
        *options(_FIELD, hidden="[16,16,16]"),
        *options(
            TRAINER, max_epochs=1, limit_train_batches=80, val_check_interval=8,
            limit_val_batches=1, limit_test_batches=2, num_sanity_val_steps=0,
        ),
        f"{MODEL}.lr_scheduler.init_args.total_iters=20",
        f"{MODEL}.optimizer.init_args.lr=3e-3",
        *options(DATA, eval_batch_size=250),
    )  # fmt: skip
    if data != "MNIST":
        short += options(FLOW, event_shape="[3,16,16]")
        short += options(DATA, image_size=16, batch_size=50)
    smoke = (
        *SMOKE,
        *options(_FIELD, hidden="[2]"),
        *options(f"{FLOW}.eval_solver.init_args", rtol=1.0, atol=1.0),
        *options(MODEL, test_draws=2),
        *options(DATA, val_size=4, batch_size=2, eval_batch_size=2),
    )
    official = " (official)" if data == "ImageNet-32" else ""
    return compare(
        f"{data}{official}, {model}",
        f"cnf/{name}_{model.lower()}",
        pick(scale, (), short, smoke),
        (0.5, 0.25),
        _PAPER[data, model],
    )


def table1(scale: Scale) -> Experiment:
    """Bits per dimension of FFJORD and RNODE."""
    return Experiment(
        name="table1",
        title="Table 1: image flows, FFJORD and RNODE",
        comparisons=tuple(
            _images(data, model, scale)
            for data, model in _PAPER
            if scale != "smoke" or (data, model) == ("MNIST", "RNODE")
        ),
        metrics=(
            Metric("test/bits_per_dim", "test bits per dimension", "lower"),
            Metric("test/bits_per_dim_center", "the same at bin centres", "lower"),
        ),
        cut=pick(
            scale,
            "The configs as they are: 100 epochs.",
            "Images averaged to 14 x 14 (MNIST) and 16 x 16 (others), which have other bits per "
            "dimension than the paper's; fields of 16-16-16 channels; 80 steps of batch 50 at "
            "rate 3e-3 (4,000 images, of 100 epochs); checked on 250, tested on 500.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 3, 2, 1),
        draw=draw_curves,
        notes=(
            "With uniform dequantisation (means of three draws in test), and at bin centres as in "
            "the public code of RNODE. ImageNet-32 is today's official one; the paper's numbers "
            "for it are far from everyone else's (3.5 to 3.8).",
        ),
    )


_DENSITIES = (
    "8gaussians",
    "pinwheel",
    "2spirals",
    "moons",
    "checkerboard",
    "swissroll",
    "circles",
)
_SMOKE_TOY = (
    *SMOKE,
    *options(_FIELD, hidden="[8]"),
    *options(_SOLVER, rtol=1.0, atol=1.0),
    *options(DATA, n_train=8, n_val=8, n_test=8, batch_size=4),
)


def toy2d(
    scale: Scale, density: str = "8gaussians", widths: tuple[float, ...] = (0.5,)
) -> Comparison:
    """The flow in two dimensions, without STEER and with it."""
    short = (
        *options(TRAINER, max_epochs=3, val_check_interval=50),
        *options(DATA, n_train=12800, batch_size=128),
    )
    overrides = (*options(DATA, name=density), *pick(scale, (), short, _SMOKE_TOY))
    return compare(density, "cnf/toy2d", overrides, widths)


def figure1(scale: Scale) -> Experiment:
    """Flow fields in two dimensions."""
    return Experiment(
        name="figure1",
        title="Figure 1: flow fields in two dimensions",
        comparisons=tuple(toy2d(scale, d) for d in _DENSITIES[: pick(scale, 7, 3, 1)]),
        metrics=(
            Metric("test/nll", "test negative log-likelihood, nats", "lower"),
            Metric("sweep/nll@0.5", "the same at T = t1 - b = 0.5", "lower"),
            Metric("sweep/nll@1.5", "the same at T = t1 + b = 1.5", "lower"),
        ),
        cut=pick(
            scale,
            "The config as it is: 500 steps of batch 256.",
            "300 steps of batch 128, three of seven densities.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 3, 2, 1),
        draw=draw_flows,
    )


def figure3(scale: Scale) -> Experiment:
    """Five Gaussians in one dimension."""
    long, short = (options(TRAINER, max_epochs=n) for n in (100, 8))
    overrides = pick(scale, long, short, _SMOKE_TOY)
    return Experiment(
        name="figure3",
        title="Figure 3: five Gaussians in one dimension, density and particle paths",
        comparisons=(compare("mixture", "cnf/toy1d", overrides, (0.25, 0.375)),),
        metrics=(
            Metric("test/nll", "cross-entropy against the true density, nats", "lower"),
            *(
                Metric(f"sweep/nll@{t:g}", f"the same at T = {t:g}", "lower")
                for t in (0.625, 0.775, 1.225, 1.375)
            ),
        ),
        cut=pick(
            scale,
            "10,000 steps of batch 100; t1 = 1, which the paper does not state.",
            "800 steps of batch 100.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 5, 3, 1),
        draw=draw_flows,
        notes=("The entropy of the density, which no flow can fall below, is 2.281 nats.",),
    )
