"""Table 5, Figure 2: image classifiers."""

from dataclasses import replace

from reproduce.experiments import (
    DATA,
    MODEL,
    SMOKE,
    TRAINER,
    Arm,
    Comparison,
    Experiment,
    Metric,
    Scale,
    steer,
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
CUTS = {
    "paper": "The configs as they are: 20 epochs, 92, 125 or 64 filters.",
    "short": (
        "MNIST as 4 x 14 x 14 with 32 filters, CIFAR-10 and SVHN at 16 x 16 with 32 filters; 160 "
        "batches of 64 (0.19 of an epoch, of 20); checked on 1,000 images, tested on 5,000."
    ),
    "smoke": "Two filters, two batches of four images: that it runs, and nothing else.",
}
_NOT_IN_SMOKE = {("CIFAR-10", "ANODE"), ("SVHN", "NODE")}
_SHORT = (
    f"{TRAINER}.max_epochs=1",
    f"{TRAINER}.limit_train_batches=160",
    f"{TRAINER}.val_check_interval=16",
    f"{TRAINER}.limit_val_batches=1",
    f"{TRAINER}.limit_test_batches=5",
    f"{TRAINER}.num_sanity_val_steps=0",
)


def arm(data: str, model: str, scale: Scale, with_steer: bool, extra: tuple[str, ...] = ()) -> Arm:
    """A classifier's arm.

    Args:
        data: ``"MNIST"``, ``"CIFAR-10"`` or ``"SVHN"``.
        model: ``"NODE"`` or ``"ANODE"``.
        scale: How much to cut.
        with_steer: Whether it is trained with STEER.
        extra: More overrides.
    """
    name = f"classifier/{data.lower().replace('-', '')}_{model.lower()}"
    if data == "MNIST" and scale != "paper":
        name += "_small"
    augmented = model == "ANODE"
    block = f"{MODEL}.block.init_args" + (".block.init_args" if augmented else "")
    overrides: tuple[str, ...] = ()
    if scale == "short":
        overrides = _SHORT
        if data != "MNIST":
            overrides += (
                f"{DATA}.image_size=16",
                f"{DATA}.batch_size=64",
                f"{block}.vector_field.init_args.filters=32",
                f"{MODEL}.head.init_args.in_features={16 * 16 * (13 if augmented else 3)}",
                f"{MODEL}.optimizer.init_args.lr=3e-3",
            )
    elif scale == "smoke":
        overrides = (
            *SMOKE,
            f"{block}.vector_field.init_args.filters=2",
            f"{DATA}.val_size=10",
            f"{DATA}.batch_size=4",
            f"{DATA}.eval_batch_size=4",
        )
    return Arm(
        "STEER, b = 0.99" if with_steer else "without",
        name,
        overrides + (steer(0.99) if with_steer else ()) + extra,
        PAPER[data, model][with_steer] if not extra else "",
    )


def _comparison(data: str, model: str, scale: Scale) -> Comparison:
    baseline, other = (arm(data, model, scale, with_steer) for with_steer in (False, True))
    return Comparison(f"{data}, {model}", baseline, (other,))


def table5(scale: Scale) -> Experiment:
    """Accuracy of NODE and ANODE."""
    return Experiment(
        name="table5",
        title="Table 5: image classifiers, NODE and ANODE",
        comparisons=tuple(
            _comparison(data, model, scale)
            for data, model in PAPER
            if scale != "smoke" or (data, model) not in _NOT_IN_SMOKE
        ),
        metrics=(
            Metric("test/accuracy", "test accuracy, %", "higher", 100.0, 2),
            Metric("test/loss", "test cross-entropy, nats", "lower"),
        ),
        cut=CUTS[scale],
        seeds={"paper": 5, "short": 3, "smoke": 1}[scale],
        draw=draw_curves,
    )


def figure2(scale: Scale) -> Experiment:
    """Accuracy against the end time of evaluation, from the runs of Table 5."""
    return Experiment(
        name="figure2",
        title="Figure 2: is the answer there by t1 - b? MNIST classifiers at other end times",
        comparisons=tuple(
            # The paper's accuracies are those at t1.
            Comparison(
                part.setting,
                replace(part.baseline, paper=""),
                tuple(replace(arm, paper="") for arm in part.others),
            )
            for part in (_comparison("MNIST", model, scale) for model in ("NODE", "ANODE"))
        ),
        metrics=(
            *(
                Metric(f"sweep/accuracy@{t:g}", f"accuracy at T = {t:.2g}, %", "higher", 100.0, 2)
                for t in (0.01, 0.604, 1.0, 1.99)
            ),
            Metric("sweep/nfe_forward@0.01", "NFE at T = 0.01", "lower", digits=1),
            Metric("sweep/nfe_forward@1", "NFE at T = 1", "lower", digits=1),
        ),
        cut=CUTS[scale],
        seeds={"paper": 5, "short": 3, "smoke": 1}[scale],
        draw=draw_sweeps,
        notes=(
            "The runs of `table5`, evaluated at end times T from t1 - b = 0.01 to t1 + b = 1.99 "
            "on one batch of test images. Plots of the features on their way are in "
            "`logs/plots` of each run.",
        ),
    )
