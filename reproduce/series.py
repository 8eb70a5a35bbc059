"""Tables 2, 3, 4 and Figure 6: irregular series."""

from collections.abc import Sequence

from reproduce.experiments import (
    DATA,
    NETWORK,
    SMOKE,
    SMOKE_CUT,
    TRAINER,
    Comparison,
    Experiment,
    Metric,
    Scale,
    Variant,
    options,
    pick,
    steer,
)
from reproduce.figures import draw_curves, draw_series

MODELS = ("latent ODE, ODE-RNN encoder", "latent ODE, RNN encoder", "ODE-RNN")
_SMALL = (
    *SMOKE,
    *options(NETWORK, n_hidden=3, recognition_hidden="[4]"),
    *options(DATA, batch_size=4),
)
Numbers = tuple[str, str]


def _comparison(
    config: str,
    model: str,
    overrides: tuple[str, ...],
    paper: Numbers = ("", ""),
    setting: str = "",
    encoder_alone: bool = False,
) -> Comparison:
    if model == "ODE-RNN":
        config += "_ode_rnn"
    elif model == "latent ODE, RNN encoder":
        overrides = (f"{NETWORK}.encoder=rnn", *overrides)
    where = "encoder and decoder" if model == MODELS[0] else "each interval"
    others = [Variant(f"STEER, {where}", config, overrides + steer("auto"), paper[1])]
    if encoder_alone and model == MODELS[0]:
        alone = overrides + steer("auto", horizons=["network.encoder"])
        others.append(Variant("STEER, encoder alone (released code)", config, alone))
    baseline = Variant("without", config, overrides, paper[0])
    return Comparison(setting or model, baseline, tuple(others))


def _models(
    config: str, overrides: tuple[str, ...], models: Sequence[str], *paper: Numbers
) -> tuple[Comparison, ...]:
    """Comparisons of some of the three models."""
    return tuple(
        _comparison(config, model, overrides, numbers, encoder_alone=True)
        for model, numbers in zip(MODELS, paper, strict=True)
        if model in models
    )


_WORDS = (
    "STEER is Section 4.2's rule with the largest b on every interval, of the decoder alone for "
    "the RNN encoder; the code released with the paper moves the ODE-RNN encoder alone."
)


def table2(scale: Scale) -> Experiment:
    """Accuracy on Human Activity."""
    overrides = pick(
        scale,
        # The whole file by name: a partial one, which is taken otherwise, is refused.
        options(DATA, file_name="ConfLongDemo_JSI.txt"),
        (*options(TRAINER, max_epochs=30), *options(NETWORK, recognition_hidden="[100,100,100]")),
        (*_SMALL, *options(DATA, val_size=4)),
    )
    return Experiment(
        name="table2",
        title="Table 2: Human Activity, accuracy at each time",
        comparisons=_models(
            "latent_ode/activity",
            overrides,
            MODELS[: pick(scale, 3, 3, 1)],
            ("0.846 +- 0.013", "0.880 +- 0.011"),
            ("0.835 +- 0.010", "0.865 +- 0.021"),
            ("0.829 +- 0.016", "0.872 +- 0.012"),
        ),
        metrics=(
            Metric("test/accuracy", "test accuracy", "higher"),
            Metric("val/accuracy", "last validation accuracy", "higher"),
        ),
        cut=pick(
            scale,
            "The configs as they are: the whole file, 200 epochs.",
            "30 of 200 epochs, the recognition field of three layers of 100; where the folder "
            "holds only a part of the file, that part (a tenth: the first 16,486 rows).",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 3, 3, 1),
        draw=draw_curves,
        notes=(_WORDS, "Windows overlap by half and are split at random, as published."),
    )


def table3(scale: Scale) -> Experiment:
    """Mortality on PhysioNet 2012."""
    overrides = pick(
        scale,
        (),
        options(TRAINER, max_epochs=6),
        (*_SMALL, *options(DATA, val_size=8, time_bin=1.0)),
    )
    return Experiment(
        name="table3",
        title="Table 3: PhysioNet 2012, area under the curve of in-hospital mortality",
        comparisons=_models(
            "latent_ode/physionet",
            overrides,
            MODELS[pick(scale, 0, 0, 2) :],
            ("0.829 +- 0.004", "0.810 +- 0.018"),
            ("0.781 +- 0.018", "0.772 +- 0.014"),
            ("0.833 +- 0.009", "0.811 +- 0.007"),
        ),
        metrics=(
            Metric("test/auc", "test AUC", "higher"),
            Metric("test/mse", "test MSE x 1e-3", "lower", 1e3, 2),
        ),
        cut=pick(
            scale,
            "The configs as they are: 4,000 records, 100 epochs.",
            "All 4,000 records, 6 of 100 epochs.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 3, 2, 1),
        draw=draw_curves,
        notes=(_WORDS,),
    )


# Mean squared errors x 1e-2 at 10, 20, 30 and 50 %: without and with STEER.
_MUJOCO = {
    ("interpolation", MODELS[0]): ("0.360 0.295 0.300 0.285", "0.230 0.235 0.246 0.210"),
    ("interpolation", MODELS[1]): ("2.477 0.578 2.768 0.447", "2.31 0.561 2.534 0.386"),
    ("interpolation", MODELS[2]): ("1.647 1.209 0.986 0.665", "1.528 1.09 0.796 0.603"),
    ("extrapolation", MODELS[0]): ("1.441 1.400 1.175 1.258", "1.01 0.98 1.01 1.04"),
    ("extrapolation", MODELS[1]): ("1.663 1.653 1.485 1.377", "1.541 1.498 1.236 1.119"),
    ("extrapolation", MODELS[2]): ("13.508 31.950 15.465 26.463", "11.508 29.34 14.23 23.528"),
}
_IN_SMOKE = {("extrapolation", MODELS[1])}
_FRACTIONS = (0.1, 0.2, 0.3, 0.5)


def _hopper(task: str, model: str, fraction: float, scale: Scale) -> Comparison:
    hidden, sides = (
        ("readout_hidden", "[100]") if model == "ODE-RNN" else ("generative_hidden", "[100,100]")
    )
    short = (
        *options(TRAINER, max_epochs=15),
        *options(DATA, limit_train=800, val_size=200),
        *options(NETWORK, recognition_hidden="[100,100]", **{hidden: sides}),
    )
    smoke = (*_SMALL, *options(DATA, n_trajectories=40, n_points=20, val_size=8))
    place = _FRACTIONS.index(fraction)
    without, with_steer = (text.split()[place] for text in _MUJOCO[task, model])
    return _comparison(
        f"latent_ode/mujoco_{task[:6]}",
        model,
        (f"{DATA}.observed_fraction={fraction:g}", *pick(scale, (), short, smoke)),
        (without, with_steer),
        f"{task}, {fraction:.0%}, {model}",
    )


def table4(scale: Scale) -> Experiment:
    """Interpolation and extrapolation of the hopper."""
    return Experiment(
        name="table4",
        title="Table 4: MuJoCo Hopper, interpolation and extrapolation",
        comparisons=tuple(
            _hopper(task, model, fraction, scale)
            for task in ("interpolation", "extrapolation")
            for fraction in pick(scale, _FRACTIONS, (0.1, 0.5), (0.1,))
            for model in MODELS
            if scale != "smoke" or (task, model) in _IN_SMOKE
        ),
        metrics=(Metric("test/mse", "test MSE x 1e-2", "lower", 1e2, 2),),
        cut=pick(
            scale,
            "The configs as they are: 7,200 trajectories to train on, 300 epochs.",
            "800 trajectories to train on, 15 of 300 epochs (240 steps), two of the four "
            "fractions, fields of two layers of 100; tested on all 2,000.",
            SMOKE_CUT,
        ),
        seeds=pick(scale, 3, 2, 1),
        draw=draw_curves,
        notes=(_WORDS, "Values are divided by their maximum, as in the public code."),
    )


def figure6(scale: Scale) -> Experiment:
    """Sine waves of random frequency."""
    overrides = pick(
        scale,
        (),
        options(TRAINER, max_epochs=60),
        (*_SMALL, *options(DATA, n_trajectories=40, val_size=8)),
    )
    part = _comparison("latent_ode/periodic", MODELS[0], overrides, encoder_alone=True)
    return Experiment(
        name="figure6",
        title="Figure 6: sine waves of random frequency plus t, half of the points observed",
        comparisons=(part,),
        metrics=(Metric("test/mse", "test MSE", "lower", digits=4),),
        cut=pick(scale, "The config as it is: 500 epochs.", "60 of 500 epochs.", SMOKE_CUT),
        seeds=pick(scale, 3, 2, 1),
        draw=draw_series,
        notes=(_WORDS,),
    )
