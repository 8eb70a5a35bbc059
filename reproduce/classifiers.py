"""Table 5, Figure 2 and a sweep over b: image classifiers."""

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
from reproduce.figures import draw_curves, draw_sweeps

PAPER = {
    ("MNIST", "NODE"): ("97.2 +- 0.2", "98.3 +- 0.3"),
    ("MNIST", "ANODE"): ("98.2 +- 0.1", "98.6 +- 0.3"),
    ("CIFAR-10", "NODE"): ("53.7 +- 0.4", "54.9 +- 0.5"),
    ("CIFAR-10", "ANODE"): ("60.6 +- 0.4", "62.1 +- 0.2"),
    ("SVHN", "NODE"): ("81.0 +- 0.6", "81.8 +- 0.3"),
    ("SVHN", "ANODE"): ("83.5 +- 0.5", "84.1 +- 0.2"),
}
_IN_SMOKE = {("MNIST", "NODE"), ("SVHN", "ANODE")}


def _cut(scale: Scale) -> str:
    return pick(
        scale,
        "The configs as they are: 20 epochs, 92, 125 or 64 filters.",
        "MNIST as 4 x 14 x 14 with 32 filters, CIFAR-10 and SVHN at 16 x 16 with 32 filters; 160 "
        "batches of 64 (0.19 of an epoch, of 20); checked on 1,000 images, tested on 5,000.",
        SMOKE_CUT,
    )


def classifier(
    data: str,
    model: str,
    scale: Scale,
    widths: tuple[float, ...] = (0.99,),
    paper: tuple[str, ...] = (),
) -> Comparison:
    """A classifier without STEER and with it."""
    name = f"classifier/{data.lower().replace('-', '')}_{model.lower()}"
    if data == "MNIST" and scale != "paper":
        name += "_small"
    augmented = model == "ANODE"
    field = f"{MODEL}.block.init_args{'.block.init_args' * augmented}.vector_field.init_args"
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
    return compare(f"{data}, {model}", name, pick(scale, (), short, smoke), widths, paper)


def table5(scale: Scale) -> Experiment:
    """Accuracy of NODE and ANODE."""
    return Experiment(
        name="table5",
        title="Table 5: image classifiers, NODE and ANODE",
        comparisons=tuple(
            classifier(*key, scale, paper=paper)
            for key, paper in PAPER.items()
            if scale != "smoke" or key in _IN_SMOKE
        ),
        metrics=(
            Metric("test/accuracy", "test accuracy, %", "higher", 100.0, 2),
            Metric("test/loss", "test cross-entropy, nats", "lower"),
        ),
        cut=_cut(scale),
        seeds=pick(scale, 5, 3, 1),
        draw=draw_curves,
    )


def figure2(scale: Scale) -> Experiment:
    """Accuracy against the end time of evaluation, from the runs of Table 5."""
    return Experiment(
        name="figure2",
        title="Figure 2: is the answer there by t1 - b? MNIST classifiers at other end times",
        comparisons=tuple(
            classifier("MNIST", model, scale)
            for model in ("NODE", "ANODE")[: pick(scale, 2, 2, 1)]
        ),
        metrics=(
            *(
                Metric(f"sweep/accuracy@{t:g}", f"accuracy at T = {t:.2g}, %", "higher", 100.0, 2)
                for t in (0.01, 0.604, 1.0, 1.99)
            ),
            Metric("sweep/nfe_forward@0.01", "NFE at T = 0.01", "lower", digits=1),
            Metric("sweep/nfe_forward@1", "NFE at T = 1", "lower", digits=1),
        ),
        cut=_cut(scale),
        seeds=pick(scale, 5, 3, 1),
        draw=draw_sweeps,
        notes=(
            "The runs of `table5`, evaluated at end times T from t1 - b = 0.01 to t1 + b = 1.99 "
            "on one batch of test images. Plots of the features on their way are in "
            "`logs/plots` of each run.",
        ),
    )
