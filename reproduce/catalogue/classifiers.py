"""Image classifiers."""

from collections.abc import Iterator
from functools import partial

from reproduce.arguments import DATA, MODEL, SMOKE, TRAINER, options, widths
from reproduce.experiments import Claim, Comparison, Metric, Scale, compare, experiment, pick
from reproduce.figures import draw_curves, draw_sweeps


def classifier(scale: Scale, data: str, model: str) -> tuple[str, tuple[str, ...]]:
    """Config and overrides of a classifier."""
    name = f"classifier/{data.lower().replace('-', '')}_{model.lower()}"
    if data == "MNIST" and scale != "paper":
        name += "_small"
    augmented = model == "ANODE"
    field = f"{MODEL}.block.init_args{'.block.init_args' * augmented}.vector_field.init_args"
    full = options(TRAINER, max_epochs=5, val_check_interval=215)  # four checks an epoch
    short = options(
        TRAINER, max_epochs=1, limit_train_batches=160, val_check_interval=16,
        limit_val_batches=1, limit_test_batches=5, num_sanity_val_steps=0,
    )  # fmt: skip
    if data != "MNIST":
        short += (
            *options(DATA, image_size=16, batch_size=64),
            *options(field, filters=32),
            f"{MODEL}.head.init_args.in_features={16 * 16 * (13 if augmented else 3)}",
            f"{MODEL}.optimizer.init_args.lr=3e-3",
        )
    smoke = (
        *SMOKE,
        *options(field, filters=2),
        *options(DATA, val_size=10, batch_size=4, eval_batch_size=4),
    )
    return name, pick(scale, (), short, smoke, full)


_percent = partial(Metric, better="higher", factor=100.0, digits=2, matters=0.2)
ACCURACY = _percent("test/accuracy", "test accuracy, %")
WORST = _percent("sweep/accuracy@min", "the worst of T in [0.01, 1.99], %")
CUTS = (
    "The configs as they are: 20 epochs, 92, 125 or 64 filters; of each training set 5,000 images "
    "are held out to validate (MNIST: 55,000 to train on).",
    "MNIST as 4 x 14 x 14 with 32 filters, CIFAR-10 and SVHN at 16 x 16 with 32 filters; 160 "
    "batches of 64 (0.19 of an epoch, of 20); checked on 1,000 images, tested on 5,000.",
    "MNIST alone, as 4 x 14 x 14 with 32 filters, batches of 64 at 3e-3: 5 of 20 epochs, on "
    "55,000 images.",
)


@experiment(
    "Table 5: image classifiers, NODE and ANODE",
    (ACCURACY, Metric("test/loss", "test cross-entropy, nats", "lower", matters=0.005), WORST),
    CUTS,
    (5, 3),
    draw_curves,
    claims=(Claim("STEER is more accurate", "test/accuracy"),),
)
def table5(scale: Scale) -> Iterator[Comparison]:
    """Accuracy of NODE and ANODE."""
    for data, model, *paper in (
        ("MNIST", "NODE", "97.2 +- 0.2", "98.3 +- 0.3"),
        ("MNIST", "ANODE", "98.2 +- 0.1", "98.6 +- 0.3"),
        ("CIFAR-10", "NODE", "53.7 +- 0.4", "54.9 +- 0.5"),
        ("CIFAR-10", "ANODE", "60.6 +- 0.4", "62.1 +- 0.2"),
        ("SVHN", "NODE", "81.0 +- 0.6", "81.8 +- 0.3"),
        ("SVHN", "ANODE", "83.5 +- 0.5", "84.1 +- 0.2"),
    ):
        few = {("MNIST", "NODE"), ("SVHN", "ANODE")}
        if pick(scale, True, True, (data, model) in few, full=data == "MNIST"):
            config, overrides = classifier(scale, data, model)
            yield compare(f"{data}, {model}", config, overrides, widths(0.99), paper)


@experiment(
    "Figure 2: is the answer there by t1 - b? MNIST classifiers at other end times",
    (
        *(
            _percent(f"sweep/accuracy@{t:g}", f"accuracy at T = {t:.2g}, %")
            for t in (0.01, 0.604, 1.0, 1.99)
        ),
        WORST,
        Metric("sweep/nfe_forward@0.01", "NFE at T = 0.01", "lower", digits=1, matters=2.0),
        Metric("sweep/nfe_forward@1", "NFE at T = 1", "lower", digits=1, matters=2.0),
    ),
    CUTS,
    (5, 3),
    draw_sweeps,
    (
        "The runs of `table5`, evaluated at end times T from t1 - b = 0.01 to t1 + b = 1.99 "
        "on one batch of test images. Plots of the features on their way are in "
        "`logs/plots` of each run.",
    ),
    claims=(Claim("with STEER the accuracy at t1 - b is higher", "sweep/accuracy@0.01"),),
)
def figure2(scale: Scale) -> Iterator[Comparison]:
    """Accuracy against the end time of evaluation, from the runs of Table 5."""
    for model in ("NODE", "ANODE")[: pick(scale, 2, 2, 1)]:
        config, overrides = classifier(scale, "MNIST", model)
        yield compare(f"MNIST, {model}", config, overrides, widths(0.99))
