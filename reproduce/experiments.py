"""Experiments: variants to train, metrics to compare, and what was cut, in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from reproduce.records import Results

Scale = Literal["smoke", "short", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "short", "paper")
Better = Literal["higher", "lower"]

MODEL, DATA, TRAINER = "--model.init_args", "--data.init_args", "--trainer"
FLOW = f"{MODEL}.flow.init_args"
NETWORK = f"{MODEL}.network.init_args"

T = TypeVar("T")


def pick(scale: Scale, paper: T, short: T, smoke: T) -> T:
    """The one of three values that belongs to a scale."""
    return {"paper": paper, "short": short, "smoke": smoke}[scale]


def options(room: str, **values: object) -> tuple[str, ...]:
    """Arguments of ``cli.py`` for one part of the config.

    Example:
        >>> options(DATA, batch_size=4, image_size=16)
        ('--data.init_args.batch_size=4', '--data.init_args.image_size=16')
    """
    return tuple(f"{room}.{name}={value}" for name, value in values.items())


# Two optimisation steps, a check after each, one batch everywhere else.
SMOKE = options(
    TRAINER, max_epochs=1, max_steps=-1, limit_train_batches=2, val_check_interval=1,
    limit_val_batches=1, limit_test_batches=1, num_sanity_val_steps=0,
)  # fmt: skip
SMOKE_CUT = "Two steps of a few samples: that it runs, and nothing else."


@dataclass(frozen=True)
class Variant:
    """One thing to train: a config and what is changed in it.

    Args:
        label: Name in tables and plots.
        config: A file below ``configs``, without its ending.
        overrides: Arguments of ``cli.py``, after the config.
        paper: The paper's number, as it stands there.
        weights: Which are tested: of the best check of the config's monitor, or the last ones.
    """

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    paper: str = ""
    weights: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class Comparison:
    """A baseline and what is set against it, seed by seed."""

    setting: str
    baseline: Variant
    others: tuple[Variant, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The baseline first."""
        return (self.baseline, *self.others)


@dataclass(frozen=True)
class Metric:
    """A number of a run, and how it is shown.

    Args:
        key: Its name among the run's values.
        label: What it is, with its unit.
        better: Which direction is.
        factor: What it is multiplied by to be shown.
        digits: Digits after the point.
        ratio: Compare logarithms, for a positive number that spans decades: means are geometric
            and differences are ratios.
    """

    key: str
    label: str
    better: Better
    factor: float = 1.0
    digits: int = 3
    ratio: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper at one scale.

    Args:
        name: As on the command line.
        title: What it shows, and where the paper has it.
        comparisons: What is trained.
        metrics: What is compared; the first is the one that the paper's numbers belong to.
        cut: What this scale leaves out of the paper's setting.
        seeds: How many, unless the command line says.
        draw: Makes the figure.
        notes: Sentences below the caption.
    """

    name: str
    title: str
    comparisons: tuple[Comparison, ...]
    metrics: tuple[Metric, ...]
    cut: str
    seeds: int
    draw: "Callable[[Experiment, Results], Figure]"
    notes: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of them, each once."""
        return tuple(
            dict.fromkeys(variant for part in self.comparisons for variant in part.variants)
        )


def steer(b: float | Literal["auto"], horizons: Sequence[str] = ()) -> tuple[str, ...]:
    """Arguments that train a config with STEER.

    Args:
        b: Half-width; ``"auto"`` for nearly the whole of each interval of a grid.
        horizons: Parts of the model to move; all of it if empty.

    Example:
        >>> steer(0.25)
        ('--steer.b=0.25',)
    """
    parts = (f"--steer.horizons=[{','.join(horizons)}]",) if horizons else ()
    return (f"--steer.b={b}", *parts)


def compare(
    setting: str,
    config: str,
    overrides: tuple[str, ...],
    widths: Sequence[float],
    paper: Sequence[str] = (),
    weights: Literal["best", "last"] = "best",
) -> Comparison:
    """A config without STEER, and with several half-widths.

    Args:
        setting: Name of the comparison.
        config: As in :class:`Variant`.
        overrides: Of every variant.
        widths: Half-widths of the others.
        paper: The paper's numbers, without STEER first.
        weights: As in :class:`Variant`.
    """
    baseline, *others = (
        Variant(
            f"STEER, b = {b:g}" if b else "without",
            config,
            overrides + (steer(b) if b else ()),
            paper[i] if paper else "",
            weights,
        )
        for i, b in enumerate((0.0, *widths))
    )
    return Comparison(setting, baseline, tuple(others))
